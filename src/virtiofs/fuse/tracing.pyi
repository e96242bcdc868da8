RING_BYTES: int

class Ring:
    def __init__(self, fd: int) -> None: ...
