from collections.abc import Callable

from virtiofs.fs.policy.rules import Policy

class Verdicts:
    def __init__(self, policy: Policy, log: Callable[[str], None]) -> None: ...
    def statistics(self) -> dict[str, int]: ...
