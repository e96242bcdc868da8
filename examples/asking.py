# SPDX-License-Identifier: Apache-2.0
"""A policy that asks:  virtiofs serve /srv/data --socket S --policy examples/asking.py:Approval

What lies in /inbox can be used only while a file beside the daemon, $APPROVED (approved.txt), lists its name; nobody
has to restart anything to change it:  echo NAME >>approved.txt  is known when the last answer is ten seconds old
(`keep_answers`).  The list is opened here, in the constructor, as behind the walls of the process that serves there is
no such file; so one that an editor puts in its place is not seen.
"""

import os

import virtiofs

LIST = os.environ.get("APPROVED", "approved.txt")


class Approval(virtiofs.Policy):
    hide = ["*.key", ".git/"]
    read_only = ["/etc/"]
    ask_about = ["/inbox/*"]
    keep_answers = 10.0

    def __init__(self):
        self.list = os.open(LIST, os.O_RDONLY | os.O_CLOEXEC)

    def ask(self, path):
        approved = os.pread(self.list, 1 << 20, 0).decode().split()
        return "read-only" if os.path.basename(path) in approved else "deny"
