"""What tests of commands say to them and see of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SHORT = ("--max-new-tokens", "8", "--threads", "1")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        return json.loads(self.out)


AtpRun = Callable[..., Outcome]


def images_of(photos: Sequence[Path]) -> list[object]:
    return [word for photo in photos for word in ("--image", photo)]
