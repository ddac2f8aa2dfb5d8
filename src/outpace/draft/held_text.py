"""What a proposer that computes holds of a request: its end, in blocks of the proposer's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from outpace.types import BLOCK_SIZE, DraftRequest

__all__ = ["HeldText"]


@dataclass(slots=True, kw_only=True)
class HeldText:
    """Tokens of a request from `start` on, at positions that count from there."""

    start: int
    block_ids: list[int] = field(default_factory=list[int])

    def room(self, request: DraftRequest) -> int:
        """For how many guesses after the request's last token its blocks have room."""
        return len(self.block_ids) * BLOCK_SIZE - (request.num_tokens - self.start)

    def find_room(self, request: DraftRequest, num_guesses: int, free_blocks: list[int]) -> bool:
        """Take what so many guesses need of the free blocks, or what there is; False where not one fits."""
        if self.room(request) + len(free_blocks) * BLOCK_SIZE <= 0:
            return False
        while self.room(request) < num_guesses and free_blocks:
            self.block_ids.append(free_blocks.pop())
        return True
