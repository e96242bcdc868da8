# SPDX-License-Identifier: Apache-2.0
"""Have file watchers in a guest notice what the host changes.  Runs in the guest; needs nothing but Python.

inotify in a guest tells only what the guest's own programs do.  So what the host did is done once more there, without
changing anything: the file's times are set to what they are, and it is opened for writing and closed.  Watchers see
IN_ATTRIB and IN_CLOSE_WRITE, look, and find the new contents.  Two cables are all it takes:

    host$ virtiofs events --by host /run/control | ssh guest python3 replay_events.py /mnt/share

Give the guest's mount a cache mode that lets it see changes at once (--cache never, or adaptive).
"""

import json
import os
import stat
import sys


def replay(path: str) -> None:
    """Touch what is at `path`, or else the directory it was in, which has changed, too."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        path = os.path.dirname(path)
        found = os.lstat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
    if stat.S_ISREG(found.st_mode):
        os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK))


def main(share: str) -> None:
    for line in sys.stdin:
        event = json.loads(line)
        # "everything": any file may have changed.  The root is touched, which is as much as can be done in one step.
        path = os.path.join(share, event.get("path", "."))
        try:
            replay(path)
        except OSError as error:
            print(f"{path}: {error.strerror}", file=sys.stderr)  # gone again, or not ours to touch


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
