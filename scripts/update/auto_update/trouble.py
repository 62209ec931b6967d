"""Why there is no update. Each is one line for the operator; the node runs on."""

from __future__ import annotations


class NoUpdate(Exception):
    """Base of both: the message is the line."""


class Refused(NoUpdate):
    """A release that must not be taken: unsigned, moved, for another protocol."""


class Trouble(NoUpdate):
    """It could not be looked or prepared: server, disk, package index, a program that is not here."""


class Wrong(Exception):
    """The operator has to put something right: exit code 2."""
