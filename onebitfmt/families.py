"""Which tensor names mean which layer group: one ordered table, kept as data.

A pattern describes the end of a tensor's name, from a component boundary on, so that prefixes such
as `model.`, `transformer.` or `vision_model.` do not matter. Components that are numbers (layers,
experts, members of a sequence) are dropped before matching. `*` stands for any part of one
component, `**` for any number of components; case counts.

The table is a union over families and the first match wins, so a checkpoint is sorted without
knowing its architecture. A family lists only what no family before it covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Tensors whose names end in one of `patterns` belong to `group`.

    `ndim` limits the rule to tensors with that many dimensions, for names that mean two things.
    """

    group: str
    patterns: tuple[str, ...]
    ndim: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Architectures that name their tensors alike, and the rules they add."""

    name: str
    rules: tuple[Rule, ...]


FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        # Comes first: these names sit inside attention, MLP, embedding and head modules alike.
        name="every architecture: buffers, position tables, norms",
        rules=(
            Rule(
                group="other",
                patterns=(
                    "inv_freq",
                    "*rotary*.*",
                    "masked_bias",
                    "causal_mask",
                    "position_ids",
                    "token_type_ids",
                    "relative_position_index",
                ),
            ),
            # The causal mask that GPT-2, GPT-J and GPT-NeoX checkpoints carry; with any other
            # number of dimensions the same name is a bias.
            Rule(group="other", patterns=("*attn.bias", "*attention.bias"), ndim=4),
            Rule(
                group="embedding",
                patterns=("relative_attention_bias.*", "relative_position_bias_table", "rel_pos_*"),
            ),
            Rule(
                group="norm",
                # Only the module that owns the tensor counts. CLIP spells it `pre_layrnorm`.
                patterns=("*norm*.*", "*Norm*.*", "*layrnorm.*", "ln*.*", "*_ln.*"),
            ),
            # LayerScale multiplies a residual branch by a vector, as the weight of a norm does.
            Rule(group="norm", patterns=("layer_scale*.*", "ls1.*", "ls2.*")),
        ),
    ),
    Family(
        # Before the dense families, whose `mlp.**` would take the gates.
        name="mixtures of experts: Mixtral, Qwen-MoE, DeepSeek, GPT-OSS, Switch, Llama 4, DBRX",
        rules=(
            Rule(
                group="router",
                patterns=(
                    "router.**",
                    "mlp.gate.**",
                    "ffn.gate.**",
                    "feed_forward.gate.**",
                    "block_sparse_moe.gate.**",
                    "shared_expert_gate.*",
                    "e_score_correction_bias",
                ),
            ),
            Rule(
                group="mlp",
                patterns=("experts.**", "block_sparse_moe.**", "shared_expert.**", "shared_mlp.**"),
            ),
        ),
    ),
    Family(
        # Before the blocks: a head may hold an attention or an MLP of its own (SigLIP, BART).
        name="task heads, put on any backbone",
        rules=(
            Rule(
                group="head",
                patterns=(
                    "head.**",
                    # Not `*_head`: Funnel has `attention.q_head`.
                    "lm_head.**",
                    "classification_head.**",
                    "score.*",
                    "pooler.**",
                    "classifier.**",
                    "*_classifier.**",
                    "qa_outputs.*",
                ),
            ),
        ),
    ),
    Family(
        name="Llama, Mistral, Qwen2, Qwen3, Gemma, Phi, Phi-3, StableLM, dense layers of DeepSeek",
        rules=(
            Rule(group="embedding", patterns=("embed_tokens.*",)),
            Rule(group="attention", patterns=("self_attn.**", "linear_attn.**")),
            Rule(group="mlp", patterns=("mlp.**",)),
        ),
    ),
    Family(
        name="Llama as released by Meta, InternLM2, Jamba",
        rules=(
            Rule(group="embedding", patterns=("tok_embeddings.*",)),
            Rule(group="attention", patterns=("attention.**",)),
            Rule(group="mlp", patterns=("feed_forward.**",)),
            Rule(group="head", patterns=("output.weight",)),
        ),
    ),
    Family(
        name="GPT-2, GPT-Neo, GPT-J, CodeGen, MPT",
        rules=(
            Rule(group="embedding", patterns=("wte.*", "wpe.*")),
            Rule(group="attention", patterns=("attn.**",)),
            Rule(group="mlp", patterns=("ffn.**",)),
        ),
    ),
    Family(
        name="GPT-NeoX, Pythia",
        rules=(
            Rule(group="embedding", patterns=("embed_in.*",)),
            Rule(group="head", patterns=("embed_out.*",)),
        ),
    ),
    Family(
        name="BLOOM, Falcon, ChatGLM",
        rules=(
            Rule(group="embedding", patterns=("word_embeddings.*",)),
            Rule(group="attention", patterns=("self_attention.**",)),
            Rule(group="head", patterns=("output_layer.*",)),
        ),
    ),
    Family(
        name="OPT",
        rules=(
            Rule(group="embedding", patterns=("embed_positions.*", "project_in.*")),
            Rule(group="mlp", patterns=("fc1.*", "fc2.*")),
            Rule(group="head", patterns=("project_out.*",)),
        ),
    ),
    Family(
        name="T5, Switch",
        rules=(
            Rule(group="embedding", patterns=("shared.*",)),
            Rule(group="attention", patterns=("*SelfAttention.**", "EncDecAttention.**")),
            Rule(group="mlp", patterns=("DenseReluDense.**",)),
        ),
    ),
    Family(
        name="BART, Whisper",
        rules=(
            # Whisper's two convolutions turn a spectrogram into the encoder's input.
            Rule(group="embedding", patterns=("encoder.conv1.*", "encoder.conv2.*")),
            Rule(group="attention", patterns=("encoder_attn.**", "cross_attn.**")),
            Rule(group="head", patterns=("proj_out.*", "final_logits_bias")),
        ),
    ),
    Family(
        name="BERT, RoBERTa, MiniLM, DistilBERT, ALBERT, ELECTRA, DeBERTa, ModernBERT",
        rules=(
            Rule(group="head", patterns=("cls.**", "predictions.**", "*_predictions.**")),
            Rule(group="head", patterns=("vocab_transform.*", "vocab_projector.*")),
            # ModernBERT's output layer; everywhere else `decoder` is a stack of layers.
            Rule(group="head", patterns=("decoder.weight", "decoder.bias")),
            Rule(
                group="embedding",
                patterns=(
                    "embeddings.**",
                    "*_embeddings.*",
                    "embeddings_project.*",
                    "embedding_hidden_mapping_in.*",
                ),
            ),
            Rule(group="attention", patterns=("crossattention.**",)),
            Rule(
                group="mlp",
                patterns=("layer.intermediate.dense.*", "layer.output.dense.*", "ffn_output.*"),
            ),
        ),
    ),
    Family(
        name="ViT, CLIP, SigLIP, LLaVA",
        rules=(
            Rule(
                group="embedding",
                patterns=(
                    "cls_token",
                    "pos_embed",
                    "patch_embed.**",
                    "multi_modal_projector.**",
                ),
            ),
            Rule(
                group="head",
                patterns=(
                    "visual_projection.*",
                    "text_projection.*",
                    "logit_scale",
                    "logit_bias",
                ),
            ),
        ),
    ),
)

NOT_LINEAR: Final[tuple[str, ...]] = (
    # Biases, also the fused ones of mixtures of experts, which have two dimensions.
    "*bias*",
    # Tables indexed by a relative position, where an override puts them into attention.
    "*relative_*.*",
    "rel_embeddings.*",
    "rel_pos_*",
    # Kernels of convolutions that are long enough to look like a matrix.
    "*conv*.*",
    "depthwise.*",
    # What quantised checkpoints store beside, or in place of, a weight.
    "*_blocks",
    "*_scales",
    "*weight_scale*",
    "scales",
    "qweight",
    "qzeros",
)
