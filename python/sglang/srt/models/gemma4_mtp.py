"""Gemma 4's multi-token prediction drafter: a few dense decoder layers, queries only, over the target's KV.

It sees the target's embedding of the last token and a hidden state, and gives candidates for the next token and the
state for the one after. How many steps there are, and what is done with the candidates, is not its business.
"""

import torch
from torch import Tensor, nn

from sglang.srt.configs.gemma4 import Gemma4TextConfig
from sglang.srt.configs.model_config import DrafterConfig, ModelConfig
from sglang.srt.distributed.tensor_parallel import TensorParallel
from sglang.srt.layers.attention.forward_batch import ForwardBatch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import Linear
from sglang.srt.layers.logits_processor import candidate_logits, head_logits
from sglang.srt.layers.vocab_parallel_embedding import VocabEmbedding
from sglang.srt.model_loader.weight_map import WeightMap
from sglang.srt.models.gemma4_causal import Gemma4DecoderLayer, Gemma4ForCausalLM, Rotation, run_layers


class CentroidHead(nn.Module):
    """Which tokens are worth a logit: those of the clusters whose centroids fit a hidden state best."""

    def __init__(self, hidden_size: int, vocab_size: int, num_centroids: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.centroids = Linear(hidden_size, num_centroids)
        # the vocabulary cluster by cluster; in the checkpoint, hence persistent
        self.register_buffer("token_ordering", torch.empty(vocab_size, dtype=torch.int64))

    def forward(self, hidden: Tensor) -> Tensor:  # [N, d] -> token ids [N, top_k * tokens of a cluster]
        scores = self.centroids(hidden)
        clusters = self.token_ordering.view(scores.shape[-1], -1)
        return clusters[scores.topk(self.top_k, dim=-1).indices].flatten(1)

    def check_weights(self) -> None:
        """ValueError unless token_ordering names every token once."""
        order = self.token_ordering
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise ValueError(f"masked_embedding.token_ordering is no permutation of the {len(order)} token ids")


class Gemma4AssistantModel(nn.Module):
    def __init__(self, text: Gemma4TextConfig, tp: TensorParallel):
        super().__init__()
        self.embed_tokens = VocabEmbedding(text.vocab_size, text.hidden_size, tp=tp)  # the head's table, no input
        self.layers = nn.ModuleList(Gemma4DecoderLayer(text, layer, tp) for layer in text.layers)
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps)

    def forward(self, h: Tensor, rotations: dict[str, Rotation], batch: ForwardBatch) -> Tensor:
        return run_layers(self.layers, self.norm, h, rotations, None, batch)


class Gemma4AssistantForCausalLM(nn.Module):
    """The drafter of one target. Raises ValueError where its config does not fit the target's (check_fits)."""

    WEIGHTS = WeightMap(prefixes={})

    def __init__(self, config: DrafterConfig, target: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.config = config.assistant
        self.tp = tp
        text, backbone = self.config.reading(target.text), self.config.backbone_hidden_size
        self.pre_projection = Linear(2 * backbone, text.hidden_size)
        self.model = Gemma4AssistantModel(text, tp)
        self.post_projection = Linear(text.hidden_size, backbone)
        self.masked_embedding = None
        if self.config.use_ordered_embeddings:
            self.masked_embedding = CentroidHead(
                text.hidden_size, text.vocab_size, self.config.num_centroids, self.config.centroid_intermediate_top_k
            )

    def bind(self, target: Gemma4ForCausalLM) -> None:
        """Embed with the target's table and turn by its rotary tables, which are what this drafter's would be."""
        # past nn.Module's registration: they stay the target's, to be loaded and counted there
        self.__dict__["embed_tokens_of_target"] = target.model.embed_tokens
        self.__dict__["rotary_of_target"] = target.model.rotary

    def unused_weights(self) -> set[str]:
        """Tensors a good checkpoint may hold that this model has no use for: beside the head, an embedding that no
        step reads (the loader swaps their names)."""
        return {"lm_head.weight"}

    def check_weights(self) -> None:
        """ValueError for loaded values that can't be right."""
        if self.masked_embedding is not None:
            self.masked_embedding.check_weights()

    def forward(self, input_ids: Tensor, prev: Tensor, positions: Tensor, batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """One draft step over the KV of the batch's `seq_lens` tokens; `batch` is one of decodes, a row for each of N.

        input_ids [N] int64, the last token of each row; prev [N, Hb], the target's hidden state after the last norm, or
        this function's second result; positions [N] int64, the same in all steps of a round -> hidden states after the
        drafter's own norm [N, d], and the next prev [N, Hb].
        """
        x = torch.cat((self.embed_tokens_of_target(input_ids), prev), dim=-1)
        rotations = {kind: rotary(positions) for kind, rotary in self.rotary_of_target.items()}
        hidden = self.model(self.pre_projection(x), rotations, batch)
        return hidden, self.post_projection(hidden)

    def candidates(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """hidden [N, d] -> logits [N, C] in the model dtype, uncapped, and the token id of each column [N, C] int64, or
        None where column c is token c (dense head)."""
        table = self.model.embed_tokens
        if self.masked_embedding is None:
            return head_logits(hidden, table.weight, None, self.tp), None
        ids = self.masked_embedding(hidden)
        return candidate_logits(hidden, ids, table), ids
