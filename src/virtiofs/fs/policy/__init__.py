# SPDX-License-Identifier: Apache-2.0
"""What a guest may see and do of a shared directory, by rules.

In: a policy, from a TOML file or a class.  Out: a verdict for each name of the tree, decided by compiled tables.
Open first: `rules.py` (what a policy says), then `patterns.py` (gitignore patterns as tokens) and `matcher.py` (the
tables, and how a directory's state and a name make a verdict).  `asking.py` calls the function of a policy that asks.
How verdicts act on requests is `fs/passthrough/policy.py`.
"""
