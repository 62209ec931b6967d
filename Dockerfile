# A node in a container: docker build -t distributed-training . ; then compose.yml. Settings come from the environment.
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu    no CUDA: 2 GB instead of 8
FROM python:3.11.14-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130

# Its own user owns what it writes, and nothing of the code.
RUN useradd --create-home --uid 10001 node \
    && mkdir -p /home/node/.distributed-training /home/node/.bittensor \
    && chown -R node:node /home/node

WORKDIR /opt/distributed-training
COPY pyproject.toml constraints.txt ./
# torch first, from the index that has the build asked for; the rest pinned by the same file.
RUN python -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt torch \
    && .venv/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' > /tmp/requirements.txt \
    && .venv/bin/python -m pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
COPY LICENSE README.md ./
COPY scripts scripts
COPY neurons neurons
COPY distributed_training distributed_training

USER 10001
ENV PYTHONUNBUFFERED=1 ROLE=miner
VOLUME ["/home/node/.distributed-training"]
EXPOSE 8091
# A node leaves within 15 s: docker stop --time 20.
STOPSIGNAL SIGTERM
# No HEALTHCHECK: it would only restart what restarts itself, or a node that waits for a chain, and each look at the
# journal loads Python anew; `docker exec ... python -m distributed_training.status` is for people.
ENTRYPOINT ["/bin/sh", "-c", "exec bash scripts/run_node.sh \"$ROLE\" foreground --env - -- \"$@\"", "node"]
