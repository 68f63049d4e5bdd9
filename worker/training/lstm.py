"""`SmallLstmDP`: an embedding, Opacus' DPLSTM, and a head.

Shape suffixes: B samples, T positions, D hidden size, V vocabulary, K classes.
"""

from torch import Tensor, nn

from service.contract import Head, ModelSpec
from worker.training.blocks import Block, logits, mean_over_positions


class LstmBlock(Block):
    """One recurrent layer, in the direction of time."""

    def __init__(self, spec: ModelSpec):
        # Here and not above: an Opacus that cannot be imported is a failure of the arm, not of this program.
        from opacus.layers import DPLSTM  # noqa: PLC0415

        super().__init__(spec.checkpointing)
        self.lstm = DPLSTM(spec.hidden_size, spec.hidden_size, bias=spec.bias, batch_first=True)
        self.dropout = nn.Dropout(spec.dropout)

    def compute(self, x_BTD: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        # Padding is at the end, so no state before it depends on it.
        x_BTD, _ = self.lstm(x_BTD)
        dropped: Tensor = self.dropout(x_BTD)
        return dropped


class SmallLstmDP(nn.Module):
    """Token embedding, `num_layers` recurrent blocks, and a head as that of `SmallTransformerDP`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.blocks = nn.ModuleList(LstmBlock(spec) for _ in range(spec.num_layers))
        outputs = spec.vocab_size if spec.head is Head.LM else spec.num_classes
        self.head = nn.Linear(spec.hidden_size, outputs, bias=spec.bias)

    def forward(self, tokens_BT: Tensor, key_padding_mask_BT: Tensor | None = None) -> Tensor:
        x_BTD = self.token_embedding(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, key_padding_mask_BT)
        if self.spec.head is Head.CLASSIFICATION:
            x_BTD = mean_over_positions(x_BTD, key_padding_mask_BT)
        return logits(self.head, x_BTD)
