"""The paper's way from steps to characters: an autoregressive Transformer decoder, one character after the other.

From the authors' code (Kišš & Hradiš 2025; facts, not code): character level, cross-attention, as wide as the encoder,
sinusoidal positions, one shared symbol for beginning and end and one to ignore, greedy decoding that keeps keys and
values, and the stop at more characters than a quarter of the width in px. Ours, and said so: half the encoder's depth
(the paper gives none), pre-norm blocks with GELU and a final norm like the encoder's, and the steps' own places, counted
from the line's beginning, added to what the encoder says of them, since the encoder shifts its positions at random in
training and a reader must know where it left off; and the loss of a linear CTC layer over the steps beside the decoder's
own (Kim, Hori & Watanabe 2017, arXiv 1609.06773). Without these two, trained on few lines, it learnt their language and
not to look at them.

Shape suffixes beside the room's: T characters, R lines that are still being read.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.config import STEP
from maskocr_core.model.ctc import Ctc
from maskocr_core.model.encoder import positions
from maskocr_core.model.vocabulary import SPECIAL

CHARACTERS_PER_STEP = STEP // 4  # a text may not be longer than a quarter of its line's width in px
CTC_SHARE = 0.3  # of the loss; 0.2 to 0.5 in the source
IGNORED = -100  # class of what stands behind the end of a text in a batch of longer ones

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, N, D / heads)


class Decoder(nn.Module):
    """Encoded steps (B, L, D) and the characters before (B, T) int64 to scores (B, T, V) of the next ones."""

    def __init__(self, width: int, depth: int, heads: int, classes: int, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, dropout) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.out = nn.Linear(width, classes)
        self.ctc = Ctc(width, classes)

    def forward(self, steps_BLD: Tensor, valid_BL: Tensor, before_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(before_BT)
        x_BTD = x_BTD + positions(x_BTD, random_offset=False)
        attend = valid_BL[:, None, None, :]
        for block, memory in zip(self.blocks, self._memories(steps_BLD)):
            x_BTD, _ = block(x_BTD, memory, attend)
        return self.out(self.norm_out(x_BTD))

    def loss(self, steps_BLD: Tensor, valid_BL: Tensor, targets: list[list[int]]) -> Tensor:
        """Cross-entropy in nats of each character and end given the true ones before it, their mean, and the loss of CTC."""
        longest = max(map(len, targets)) + 1
        after = [[*target, SPECIAL] + [IGNORED] * (longest - 1 - len(target)) for target in targets]
        before = [[SPECIAL, *target] + [SPECIAL] * (longest - 1 - len(target)) for target in targets]
        after_BT, before_BT = (torch.tensor(rows, device=steps_BLD.device) for rows in (after, before))
        scores_BTV = self(steps_BLD, valid_BL, before_BT)
        own = functional.cross_entropy(scores_BTV.flatten(0, 1), after_BT.flatten(), ignore_index=IGNORED)
        return (1 - CTC_SHARE) * own + CTC_SHARE * self.ctc.loss(steps_BLD, valid_BL, targets)

    @torch.no_grad()
    def read(self, steps_BLD: Tensor, valid_BL: Tensor) -> tuple[list[list[int]], list[float]]:
        """Classes of each line's likeliest characters, one after the other, and their mean probability, the end's included."""
        B, device = len(steps_BLD), steps_BLD.device
        limits = CHARACTERS_PER_STEP * valid_BL.sum(1)
        longest = int(limits.max())
        place_TD = positions(steps_BLD.new_zeros(1, longest, steps_BLD.shape[2]), random_offset=False)[0]
        chosen_BT = torch.zeros(B, longest, dtype=torch.int64, device=device)
        probability, count = torch.zeros(B, device=device), torch.zeros(B, device=device)
        rows, running = torch.arange(B, device=device), torch.ones(B, dtype=torch.bool, device=device)
        last_R, state = torch.full((B,), SPECIAL, device=device), State(self._memories(steps_BLD), valid_BL)
        for place in range(longest):
            log_R, last_R = self._next(last_R, place_TD[place], state).log_softmax(-1).max(-1)
            last_R = torch.where(running, last_R, SPECIAL)
            chosen_BT[rows, place] = last_R
            probability[rows] += torch.where(running, log_R.float().exp(), 0.0)
            count[rows] += running
            running = running & (last_R != SPECIAL) & (place + 1 < limits[rows])
            left = int(running.sum())
            if not left:
                break
            if 2 * left <= len(running):  # one line without an end must not keep the whole batch reading
                state.keep(running)
                rows, last_R, running = rows[running], last_R[running], running[running]
        lines = [list(itertools.takewhile(lambda label: label != SPECIAL, line)) for line in chosen_BT.tolist()]
        return lines, (probability / count).tolist()

    def _memories(self, steps_BLD: Tensor) -> list[KeyValue]:
        memory_BLD = steps_BLD + positions(steps_BLD, random_offset=False)
        return [block.memory(memory_BLD) for block in self.blocks]

    def _next(self, last_R: Tensor, place_D: Tensor, state: State) -> Tensor:
        """Scores (R, V) of the characters after the last ones; what these leave for later ones is kept in `state`."""
        x_R1D = (self.embedding(last_R) + place_D)[:, None]
        for number, block in enumerate(self.blocks):
            x_R1D, state.past[number] = block(x_R1D, state.memories[number], state.attend, state.past[number])
        return self.out(self.norm_out(x_R1D[:, 0]))


class State:
    """Keys and values of the lines being read: of their steps, and of the characters so far; one of each for each block."""

    def __init__(self, memories: list[KeyValue], valid_BL: Tensor):
        self.memories, self.attend = memories, valid_BL[:, None, None, :]
        none = memories[0][0][:, :, :0]
        self.past: list[KeyValue] = [(none, none)] * len(memories)

    def keep(self, which: Tensor) -> None:
        """Forget the other lines."""
        self.memories, self.past = (
            [(keys[which], values[which]) for keys, values in pairs] for pairs in (self.memories, self.past)
        )
        self.attend = self.attend[which]


class DecoderBlock(nn.Module):
    """Pre-norm block: attention to the characters before, attention to the steps, feed-forward four times the width."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_self, self.norm_cross, self.norm_feedforward = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out_self = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value, self.out_cross = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def memory(self, memory_BLD: Tensor) -> KeyValue:
        """Keys and values of the steps: the same for every character."""
        keys, values = self.key_value(memory_BLD).chunk(2, -1)
        return self._by_head(keys), self._by_head(values)

    def forward(
        self, x_BTD: Tensor, memory: KeyValue, attend: Tensor, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x after the block, and keys and values of all characters so far.

        attend: which steps are valid (B, 1, 1, L). past: those of the characters before x, which is then one character.
        """
        query, keys, values = (self._by_head(part) for part in self.qkv(self.norm_self(x_BTD)).chunk(3, -1))
        if past:
            keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
        mixed = functional.scaled_dot_product_attention(query, keys, values, is_causal=not past)
        x_BTD = x_BTD + self._drop(self.out_self(mixed.transpose(1, 2).flatten(2)))
        query = self._by_head(self.query(self.norm_cross(x_BTD)))
        mixed = functional.scaled_dot_product_attention(query, *memory, attn_mask=attend)
        x_BTD = x_BTD + self._drop(self.out_cross(mixed.transpose(1, 2).flatten(2)))
        x_BTD = x_BTD + self._drop(self.down(functional.gelu(self.up(self.norm_feedforward(x_BTD)))))
        return x_BTD, (keys, values)

    def _by_head(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        return x_BND.view(B, N, self.heads, D // self.heads).transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)
