"""Every check of the doctor, in the order in which a person reads them."""

from __future__ import annotations

from distributed_training.doctor.base import Check
from distributed_training.doctor.chain import check_chain, check_clock
from distributed_training.doctor.here import HERE
from distributed_training.doctor.hub import check_hub
from distributed_training.doctor.pages import check_pages
from distributed_training.doctor.peers import check_bandwidth, check_port
from distributed_training.doctor.run import check_manifest, check_subnet_flags, check_tokenizer
from distributed_training.doctor.standing import check_registered
from distributed_training.doctor.subject import Subject
from distributed_training.doctor.work import check_work

LATE_S = 16.0  # for what asks the chain first, then peers
SLOW = "see whether this machine's line or its CPUs are busy, and try again"
CHECKS: tuple[Check[Subject], ...] = (
    *HERE,
    Check("chain", check_chain, SLOW, LATE_S),
    Check("clock by the chain", check_clock, SLOW, LATE_S),
    Check("registered", check_registered, SLOW, LATE_S),
    Check("subnet pays", check_subnet_flags, SLOW, LATE_S),
    Check("manifest", check_manifest, SLOW, LATE_S),
    Check("tokenizer", check_tokenizer, SLOW, LATE_S),
    Check("pages", check_pages, SLOW, LATE_S),
    Check("Hub token", check_hub, SLOW, LATE_S),
    Check("reached by peers", check_port, SLOW, LATE_S),
    Check("bandwidth", check_bandwidth, SLOW, LATE_S),
    Check("steps per round", check_work, SLOW, LATE_S),
)
