# SPDX-License-Identifier: Apache-2.0
"""What parses bytes of a guest, a VMM or a worker, fed with hostile ones.  See docs/fuzzing.md.

Each target is a module with `SEEDS` (inputs to begin with) and `Target`, an object that is called with bytes; its
docstring begins with the oracle, one sentence.  Whatever it raises, and whatever a sanitiser reports, is a finding.
Open first: `__main__.py`, then `queues.py`.
"""
