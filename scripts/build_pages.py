"""Build the pages of a run from a data set: the table pages.bin, and files of pages where they are needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from distributed_training.commands import command, python
from distributed_training.data import tokens
from distributed_training.data.build import hub_pages, rewrite
from distributed_training.data.build.card import files_of
from distributed_training.data.build.filters import parse_filter
from distributed_training.data.build.hub import HubDataset, HubFile
from distributed_training.data.build.source import open_hub, open_local
from distributed_training.data.build.upload import check_files, upload
from distributed_training.data.local import build_pages
from distributed_training.data.page_file import PAGES_FILE, PageTable, open_page_table
from distributed_training.errors import ConfigError, LocalFault, said
from distributed_training.files import write_whole
from distributed_training.hub import Repo, prepare_client, require_token
from distributed_training.settings.arguments import Parser, file_or_folder, new_folder, whole
from distributed_training.settings.entry import run_main
from distributed_training.settings.places import parse_repo

DESCRIPTION = """\
Build the pages of a run into --out DIR. Same input, same pages.bin, same sha256. Three ways, chosen by what is given:

  FOOTERS  a data set on the Hub that is parquet: only the footers of its files
           are read (about 1 GB for FineWeb's sample-350BT, 40 MB for
           sample-10BT), nothing is copied. A page is a row group of the data
           set, read from the Hub by one request when it is trained on. Stopped
           by Ctrl-C or anything else, the same command goes on. Such pages are
           believed for the commit of the data set; --digests reads each once
           and pins its content.
  REWRITE  any other data set, or with --filter: streamed once through the
           `datasets` library (pip install -e '.[data]') and written as pages
           into --out; --upload publishes them.
  TEXT     --text DIR: plain text files on this disk.
"""
EXAMPLES = """\
  FineWeb, all of sample-10BT (15 million documents), from the footers:
    python scripts/build_pages.py --dataset HuggingFaceFW/fineweb \\
        --name sample-10BT --out pages/10BT
  sample-350BT at a commit, the first 2,000 pages, with digests:
    python scripts/build_pages.py --dataset HuggingFaceFW/fineweb \\
        --name sample-350BT --revision COMMIT --limit 2000 --digests \\
        --out pages/350BT
  the best English pages of it as a data set of your own:
    python scripts/build_pages.py --dataset HuggingFaceFW/fineweb \\
        --name sample-10BT --limit 4000 --out pages/best --upload ORG/best \\
        --filter "language_score > 0.95 and language == 'en'"
  JSON lines on this machine, the column `content`:
    python scripts/build_pages.py --dataset json --column content \\
        --data-files 'corpus/*.jsonl.gz' --out pages/mine
"""
EPILOG = """\
A private data set needs a token that may read it: HF_TOKEN, or `hf auth login`. HF_ENDPOINT names another Hub.
--filter compares columns with numbers, texts in quotes, True, False or None: < <= > >= == != in, not in, and, or, not.
"""
EVERYWHERE = ("out", "limit", "upload", "tokenizer", "eos")
USES = {
    "FOOTERS": ("dataset", "name", "revision", "split", "column", "digests", "heldout_pages", "threads"),
    "REWRITE": (
        *("dataset", "name", "revision", "split", "column", "data_files", "filter", "rewrite"),
        *("page_bytes", "heldout_bytes"),
    ),
    "TEXT": ("text", "page_bytes", "heldout_bytes"),
}
BYTES_PER_TOKEN = 4.4  # of English web text with GPT-2's tokeniser
PAGE_BYTES, HELDOUT_BYTES = 3_000_000, 8_000_000  # a FineWeb page; enough for 1,024 sequences of 1,024 tokens


@dataclass(frozen=True, slots=True)
class Result:
    table: PageTable
    text_bytes: int
    exact: bool
    left_out: str | None = None


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES, epilog=EPILOG)
    add = made.group("what is built")
    add("--out", type=new_folder, required=True, metavar="DIR", help="where the pages go")
    add("--dataset", metavar="ORG/NAME", help="data set on the Hub; with --data-files: parquet, json, csv or text")
    add("--text", type=file_or_folder, metavar="DIR", help="TEXT: folder of text files, or one file")
    add("--limit", type=whole(1, 1 << 31, "pages"), metavar="N", help="the first N pages; default: all")
    add("--upload", metavar="ORG/NAME", help="publish: make this data set and put everything there in one commit")
    add = made.group("of a data set")
    add("--name", metavar="CONFIG", help="configuration of the data set, as its card names it")
    add("--revision", metavar="REV", help="commit, tag or branch; default main; the commit is printed")
    add("--split", metavar="SPLIT", help="default: train, or the only one")
    add("--column", metavar="NAME", help="column that holds the documents; default text")
    add = made.group("FOOTERS: where parquet lies on the Hub")
    add("--digests", action="store_true", default=None, help="read every page and pin its content")
    add("--heldout-pages", type=whole(1, 4096, "pages"), metavar="N", help="row groups kept out; default 4")
    add("--threads", type=whole(1, 64, "threads"), metavar="N", help="requests at a time; default 8")
    add = made.group("REWRITE: any other data set")
    add("--data-files", metavar="GLOB", help="files on this machine")
    add("--filter", metavar="EXPRESSION", help="rows to keep")
    add("--rewrite", action="store_true", default=None, help="even where FOOTERS would do")
    add = made.group("REWRITE and TEXT: sizes")
    add("--page-bytes", type=whole(1, 1 << 28, "bytes"), metavar="N", help="bytes of text in a page")
    add("--heldout-bytes", type=whole(1, 1 << 28, "bytes"), metavar="N", help="bytes of text kept out")
    add = made.group("the run's tokenizer")
    add("--tokenizer", metavar="NAME|FILE", help="tokenizer of the run: a tokenizer.json is put beside the pages")
    add("--eos", metavar="TOKEN", help="special token of the tokenizer.json that ends a document")
    return made


def build(args: argparse.Namespace) -> Result:
    """Choose the way, say which, and go it."""
    if (args.text is None) == (args.dataset is None):
        raise ConfigError("expected --dataset NAME or --text DIR: where does the text come from? (--help has examples)")
    if args.text is not None:
        return from_text(args)
    if args.data_files is not None:
        check_uses(args, "REWRITE", "files on this machine are written as pages")
        for flag in ("name", "revision", "split"):
            if getattr(args, flag) is not None:
                raise ConfigError(f"--{flag} is for a data set on the Hub, --data-files are on this machine")
        return from_rows(args, None)
    if args.dataset in ("parquet", "json", "csv", "text"):
        raise ConfigError(f"--dataset {args.dataset} needs --data-files GLOB: which files?")
    dataset = HubDataset(args.dataset, args.revision or "main")
    print(f"{dataset.repo} at commit {dataset.revision}", flush=True)
    if args.filter is not None or args.rewrite:
        check_uses(args, "REWRITE", "--filter and --rewrite write the pages anew")
        return from_rows(args, dataset)
    files = files_of(dataset, args.name, args.split)
    if all(file.name.endswith(".parquet") for file in files):
        return from_footers(args, dataset, files)
    check_uses(args, "REWRITE", f"{files[0].name} is not parquet")
    return from_rows(args, dataset)


def check_uses(args: argparse.Namespace, way: str, why: str) -> None:
    """Says which way and why. Raises ConfigError for a flag that this way has no use for."""
    given = [name for name, value in vars(args).items() if value is not None]
    for name in given:
        if name not in (*EVERYWHERE, *USES[way]):
            others = [other for other, names in USES.items() if name in names]
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for {' and '.join(others)}, but this is {way}: {why} (--help)")
    print(f"{way}: {why}", flush=True)


def from_footers(args: argparse.Namespace, dataset: HubDataset, files: Sequence[HubFile]) -> Result:
    size = sum(file.num_bytes for file in files)
    check_uses(args, "FOOTERS", f"{len(files)} parquet files of {size / 1e9:,.2f} GB, no --filter")
    choices = hub_pages.Choices(
        args.column or "text", args.limit, args.heldout_pages or 4, bool(args.digests), args.threads or 8
    )
    built = hub_pages.build_hub_pages(args.out, dataset, files, choices)
    print(f"read {built.fetched / 1e6:,.1f} MB of footers")
    return Result(built.table, built.text_bytes, built.table.missing_digests == 0, built.left_out)


def from_rows(args: argparse.Namespace, dataset: HubDataset | None) -> Result:
    keep = parse_filter(args.filter) if args.filter is not None else None
    choices = rewrite.Choices(
        column=args.column or "text",
        keep=keep,
        page_bytes=args.page_bytes or PAGE_BYTES,
        num_pages=args.limit,
        heldout_bytes=args.heldout_bytes or HELDOUT_BYTES,
    )
    source = open_local(args.dataset, args.data_files) if dataset is None else open_hub(dataset, args.name, args.split)
    made = rewrite.rewrite(args.out, source, choices)
    return Result(made.table, made.text_bytes, True, made.left_out)


def from_text(args: argparse.Namespace) -> Result:
    check_uses(args, "TEXT", f"the text files in {args.text} are written as pages")
    sizes = {"page_bytes": args.page_bytes, "heldout_bytes": args.heldout_bytes}
    build_pages(args.out, args.text, num_pages=args.limit, **sizes, say=lambda line: print(line, flush=True))
    table = open_page_table(args.out / PAGES_FILE)
    return Result(table, int(table.columns.text_bytes.sum(dtype="int64")), True)


def as_built(args: argparse.Namespace) -> Result:
    """Pages that are in --out already, to be uploaded. Raises ConfigError when they are not whole."""
    print(f"{args.out} has pages: nothing is built", flush=True)
    table = open_page_table(args.out / PAGES_FILE)
    check_files(args.out, table)
    return Result(table, int(table.columns.text_bytes.sum(dtype="int64")), True)


def chosen_tokenizer(args: argparse.Namespace) -> bytes | None:
    """What --tokenizer names, checked, if that is a file. Raises ConfigError."""
    if args.tokenizer is None or tokens.choose(args.tokenizer, args.eos).kind != "file":
        return None
    try:
        return tokens.tokenizer_path(args.tokenizer).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the tokenizer {args.tokenizer}: {error.strerror or error}") from None


def keep_tokenizer(path: Path, data: bytes) -> Path:
    """Put it beside the pages. Raises ConfigError."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def report(args: argparse.Namespace, result: Result, tokenizer: Path | None) -> None:
    table, about = result.table, "" if result.exact else "about "
    if result.left_out is not None:
        print(result.left_out)
    count = table.num_pages
    print(f"pages    {count:,} in {len(table.header.files):,} files, held out {len(table.header.heldout)} pieces")
    print(f"text     {about}{result.text_bytes / 1e6:,.1f} MB")
    print(f"tokens   about {result.text_bytes / BYTES_PER_TOKEN / 1e6:,.1f} million at {BYTES_PER_TOKEN} bytes a token")
    print(f"sha256   {table.sha256}")
    missing = table.missing_digests
    with_digest = f"{count - missing:,} of {count:,} pages have a digest; the others are trusted by the commit"
    print(f"trust    {with_digest if missing else 'every page has a digest'}")
    print(f"next     {next_command(args, tokenizer)}")


def next_command(args: argparse.Namespace, tokenizer: Path | None) -> str:
    """What makes a run of these pages."""
    flags = (("--pages", args.out), ("--tokenizer", tokenizer or args.tokenizer), ("--eos", args.eos))
    where = ("--netuid", "N", "--in", "2h", "--subtensor.network", "finney")
    rest = (*where, "--wallet.name", "W", "--wallet.hotkey", "H", "--out", "runs/NAME/manifest.json")
    return command(python(), "scripts/create_run.py", "--preset", "gpt2-124m", *flags, *rest)


def check_upload(repo: str) -> None:
    """Before hours of work: a name that can be, and a token that may write. Raises ConfigError, HubFault."""
    try:
        parse_repo(repo)
    except ValueError:
        raise ConfigError(f"--upload {repo}: expected ORG/NAME") from None
    require_token(HfApi(), Repo(repo, "dataset"))


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.eos is not None and args.tokenizer is None:
        raise ConfigError("--eos TOKEN is for a --tokenizer FILE")
    prepare_client()
    try:
        if args.upload is not None:
            check_upload(args.upload)
        chosen = chosen_tokenizer(args)
        ready = args.upload and not args.text and not args.dataset and (args.out / PAGES_FILE).exists()
        result = as_built(args) if ready else build(args)
        tokenizer = None if chosen is None else keep_tokenizer(args.out / tokens.TOKENIZER_FILE, chosen)
        report(args, result, tokenizer)
        if args.upload is not None:
            commit = upload(args.out, result.table, args.upload, tokenizer)
            print(f"uploaded hub:{args.upload}@{commit}   use it with --pages")
    except LocalFault as error:
        print(f"error: {said(error)}; the same command goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    code = run_main(lambda: main(sys.argv[1:]))
    sys.stdout.flush()
    os._exit(code)  # threads that `datasets` has left reading would sometimes abort a plain exit
