"""The layer group of every tensor of each family, against tables written by hand.

A table lists one group a line; `{a,b}` stands for either word, as in a shell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import pytest
import torch

from onebitfmt import families, groups
from onebitfmt.errors import UsageError
from onebitfmt.groups import GROUPS, Override, assign_groups, is_linear_weight, layer_group

Shapes = dict[str, tuple[int, ...]]


def expand(word: str) -> Iterator[str]:
    """Write out the braces of a word."""
    parts = [part.split(",") for part in re.split(r"[{}]", word)]
    # Outside braces a part has no comma, so it is a choice of one.
    return ("".join(choice) for choice in product(*parts))


def read_table(text: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for line in filter(None, text.splitlines()):
        group, *words = line.split()
        for name in (name for word in words for name in expand(word)):
            assert name not in table, name
            table[name] = group
    return table


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A model of transformers with few layers, and the group of each of its tensors."""

    model: str
    config: str
    table: str
    options: dict[str, Any] = field(default_factory=lambda: {"num_hidden_layers": 1})


LLAMA: Final = """
embedding model.embed_tokens.weight
attention model.layers.0.self_attn.{q_proj,k_proj,v_proj,o_proj}.weight
mlp       model.layers.0.mlp.{gate_proj,up_proj,down_proj}.weight
norm      model.layers.0.{input_layernorm,post_attention_layernorm}.weight model.norm.weight
head      lm_head.weight
"""
QWEN2: Final = LLAMA + "attention model.layers.0.self_attn.{q_proj,k_proj,v_proj}.bias"
QWEN3: Final = LLAMA + "norm model.layers.0.self_attn.{q_norm,k_norm}.weight"
GEMMA2: Final = LLAMA + (
    "norm model.layers.0.{pre_feedforward_layernorm,post_feedforward_layernorm}.weight"
)
GEMMA3: Final = GEMMA2 + "\nnorm model.layers.0.self_attn.{q_norm,k_norm}.weight"
PHI: Final = """
embedding model.embed_tokens.weight
attention model.layers.0.self_attn.{q_proj,k_proj,v_proj,dense}.{weight,bias}
mlp       model.layers.0.mlp.{fc1,fc2}.{weight,bias}
norm      model.layers.0.input_layernorm.{weight,bias} model.final_layernorm.{weight,bias}
head      lm_head.{weight,bias}
"""
PHI3: Final = """
embedding model.embed_tokens.weight
attention model.layers.0.self_attn.{qkv_proj,o_proj}.weight
mlp       model.layers.0.mlp.{gate_up_proj,down_proj}.weight
norm      model.layers.0.{input_layernorm,post_attention_layernorm}.weight model.norm.weight
head      lm_head.weight
"""
STABLELM: Final = (
    QWEN2
    + """
norm      model.layers.0.{input_layernorm,post_attention_layernorm}.bias model.norm.bias
norm      model.layers.0.self_attn.{q_layernorm,k_layernorm}.norms.{0,1}.weight
"""
)
GPT2: Final = """
embedding transformer.{wte,wpe}.weight
attention transformer.h.0.attn.{c_attn,c_proj}.{weight,bias}
mlp       transformer.h.0.mlp.{c_fc,c_proj}.{weight,bias}
norm      transformer.h.0.{ln_1,ln_2}.{weight,bias} transformer.ln_f.{weight,bias}
head      lm_head.weight
"""
GPT_NEO: Final = """
embedding transformer.{wte,wpe}.weight
attention transformer.h.0.attn.attention.{q_proj,k_proj,v_proj,out_proj}.weight
attention transformer.h.0.attn.attention.out_proj.bias
mlp       transformer.h.0.mlp.{c_fc,c_proj}.{weight,bias}
norm      transformer.h.0.{ln_1,ln_2}.{weight,bias} transformer.ln_f.{weight,bias}
head      lm_head.weight
"""
GPT_J: Final = """
embedding transformer.wte.weight
attention transformer.h.0.attn.{q_proj,k_proj,v_proj,out_proj}.weight
mlp       transformer.h.0.mlp.{fc_in,fc_out}.{weight,bias}
norm      transformer.h.0.ln_1.{weight,bias} transformer.ln_f.{weight,bias}
head      lm_head.{weight,bias}
"""
GPT_NEOX: Final = """
embedding gpt_neox.embed_in.weight
attention gpt_neox.layers.0.attention.{query_key_value,dense}.{weight,bias}
mlp       gpt_neox.layers.0.mlp.{dense_h_to_4h,dense_4h_to_h}.{weight,bias}
norm      gpt_neox.layers.0.{input_layernorm,post_attention_layernorm}.{weight,bias}
norm      gpt_neox.final_layer_norm.{weight,bias}
head      lm_head.weight
"""
OPT: Final = """
embedding model.decoder.{embed_tokens,embed_positions,project_in}.weight
attention model.decoder.layers.0.self_attn.{q_proj,k_proj,v_proj,out_proj}.{weight,bias}
mlp       model.decoder.layers.0.{fc1,fc2}.{weight,bias}
norm      model.decoder.layers.0.{self_attn_layer_norm,final_layer_norm}.{weight,bias}
norm      model.decoder.final_layer_norm.{weight,bias}
head      model.decoder.project_out.weight lm_head.weight
"""
BLOOM: Final = """
embedding transformer.word_embeddings.weight
attention transformer.h.0.self_attention.{query_key_value,dense}.{weight,bias}
mlp       transformer.h.0.mlp.{dense_h_to_4h,dense_4h_to_h}.{weight,bias}
norm      transformer.word_embeddings_layernorm.{weight,bias} transformer.ln_f.{weight,bias}
norm      transformer.h.0.{input_layernorm,post_attention_layernorm}.{weight,bias}
head      lm_head.weight
"""
FALCON: Final = """
embedding transformer.word_embeddings.weight
attention transformer.h.0.self_attention.{query_key_value,dense}.weight
mlp       transformer.h.0.mlp.{dense_h_to_4h,dense_4h_to_h}.weight
norm      transformer.h.0.input_layernorm.{weight,bias} transformer.ln_f.{weight,bias}
head      lm_head.weight
"""
FALCON_40B: Final = """
embedding transformer.word_embeddings.weight
attention transformer.h.0.self_attention.{query_key_value,dense}.{weight,bias}
mlp       transformer.h.0.mlp.{dense_h_to_4h,dense_4h_to_h}.{weight,bias}
norm      transformer.h.0.{ln_attn,ln_mlp}.{weight,bias} transformer.ln_f.{weight,bias}
head      lm_head.weight
"""
MPT: Final = """
embedding transformer.wte.weight
attention transformer.blocks.0.attn.{Wqkv,out_proj}.weight
mlp       transformer.blocks.0.ffn.{up_proj,down_proj}.weight
norm      transformer.blocks.0.{norm_1,norm_2}.weight transformer.norm_f.weight
head      lm_head.weight
"""
MIXTRAL: Final = """
embedding model.embed_tokens.weight
attention model.layers.0.self_attn.{q_proj,k_proj,v_proj,o_proj}.weight
router    model.layers.0.mlp.gate.weight
mlp       model.layers.0.mlp.experts.{gate_up_proj,down_proj}
norm      model.layers.0.{input_layernorm,post_attention_layernorm}.weight model.norm.weight
head      lm_head.weight
"""
QWEN2_MOE: Final = (
    MIXTRAL
    + """
attention model.layers.0.self_attn.{q_proj,k_proj,v_proj}.bias
router    model.layers.0.mlp.shared_expert_gate.weight
mlp       model.layers.0.mlp.shared_expert.{gate_proj,up_proj,down_proj}.weight
"""
)
QWEN3_MOE: Final = MIXTRAL + "norm model.layers.0.self_attn.{q_norm,k_norm}.weight"
DEEPSEEK_V2: Final = """
embedding model.embed_tokens.weight
attention model.layers.{0,1}.self_attn.{q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj}.weight
attention model.layers.{0,1}.self_attn.o_proj.weight
norm      model.layers.{0,1}.self_attn.{q_a_layernorm,kv_a_layernorm}.weight model.norm.weight
norm      model.layers.{0,1}.{input_layernorm,post_attention_layernorm}.weight
mlp       model.layers.0.mlp.{gate_proj,up_proj,down_proj}.weight
mlp       model.layers.1.mlp.shared_experts.{gate_proj,up_proj,down_proj}.weight
mlp       model.layers.1.mlp.experts.{gate_up_proj,down_proj}
router    model.layers.1.mlp.gate.weight
head      lm_head.weight
"""
DEEPSEEK_V3: Final = DEEPSEEK_V2 + "router model.layers.1.mlp.gate.e_score_correction_bias"
GPT_OSS: Final = """
embedding model.embed_tokens.weight
attention model.layers.0.self_attn.{q_proj,k_proj,v_proj,o_proj}.{weight,bias}
attention model.layers.0.self_attn.sinks
router    model.layers.0.mlp.router.{weight,bias}
mlp       model.layers.0.mlp.experts.{gate_up_proj,down_proj,gate_up_proj_bias,down_proj_bias}
norm      model.layers.0.{input_layernorm,post_attention_layernorm}.weight model.norm.weight
head      lm_head.weight
"""
T5: Final = """
embedding shared.weight {encoder,decoder}.embed_tokens.weight
embedding {encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias.weight
attention {encoder,decoder}.block.0.layer.0.SelfAttention.{q,k,v,o}.weight
attention decoder.block.0.layer.1.EncDecAttention.{q,k,v,o}.weight
mlp       encoder.block.0.layer.1.DenseReluDense.{wi,wo}.weight
mlp       decoder.block.0.layer.2.DenseReluDense.{wi,wo}.weight
norm      {encoder,decoder}.block.0.layer.{0,1}.layer_norm.weight
norm      decoder.block.0.layer.2.layer_norm.weight {encoder,decoder}.final_layer_norm.weight
head      lm_head.weight
"""
FLAN_T5: Final = T5.replace("{wi,wo}", "{wi_0,wi_1,wo}")
SWITCH: Final = """
embedding shared.weight {encoder,decoder}.embed_tokens.weight
embedding {encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias.weight
attention {encoder,decoder}.block.0.layer.0.SelfAttention.{q,k,v,o}.weight
attention decoder.block.0.layer.1.EncDecAttention.{q,k,v,o}.weight
router    {encoder.block.0.layer.1,decoder.block.0.layer.2}.mlp.router.classifier.weight
mlp       encoder.block.0.layer.1.mlp.experts.{expert_0,expert_1}.{wi,wo}.weight
mlp       decoder.block.0.layer.2.mlp.experts.{expert_0,expert_1}.{wi,wo}.weight
norm      {encoder,decoder}.block.0.layer.{0,1}.layer_norm.weight
norm      decoder.block.0.layer.2.layer_norm.weight {encoder,decoder}.final_layer_norm.weight
head      lm_head.weight
"""
BERT_LAYER: Final = """
attention bert.encoder.layer.0.attention.self.{query,key,value}.{weight,bias}
attention bert.encoder.layer.0.attention.output.dense.{weight,bias}
mlp       bert.encoder.layer.0.{intermediate,output}.dense.{weight,bias}
norm      bert.encoder.layer.0.{attention.output,output}.LayerNorm.{weight,bias}
norm      bert.embeddings.LayerNorm.{weight,bias}
"""
BERT: Final = (
    BERT_LAYER
    + """
embedding bert.embeddings.{word_embeddings,position_embeddings,token_type_embeddings}.weight
head      bert.pooler.dense.{weight,bias}
"""
)
BERT_PRETRAINING: Final = (
    BERT
    + """
norm      cls.predictions.transform.LayerNorm.{weight,bias}
head      cls.predictions.bias cls.predictions.{transform.dense,decoder}.{weight,bias}
head      cls.seq_relationship.{weight,bias}
"""
)
BERT_CLASSIFIER: Final = BERT + "head classifier.{weight,bias}"
BERT_ANSWERS: Final = BERT.replace("head      bert.pooler.dense", "head      qa_outputs")
ROBERTA: Final = BERT.replace("bert.", "roberta.").replace(
    "head      roberta.pooler.dense.{weight,bias}",
    "head lm_head.bias lm_head.{dense,decoder}.{weight,bias}\n"
    "norm lm_head.layer_norm.{weight,bias}",
)
DISTILBERT: Final = """
embedding distilbert.embeddings.{word_embeddings,position_embeddings}.weight
attention distilbert.transformer.layer.0.attention.{q_lin,k_lin,v_lin,out_lin}.{weight,bias}
mlp       distilbert.transformer.layer.0.ffn.{lin1,lin2}.{weight,bias}
norm      distilbert.transformer.layer.0.{sa_layer_norm,output_layer_norm}.{weight,bias}
norm      distilbert.embeddings.LayerNorm.{weight,bias}
"""
DISTILBERT_LM: Final = (
    DISTILBERT
    + """
norm      vocab_layer_norm.{weight,bias}
head      {vocab_transform,vocab_projector}.{weight,bias}
"""
)
DISTILBERT_CLASSIFIER: Final = DISTILBERT + "head {pre_classifier,classifier}.{weight,bias}"
ALBERT_LAYER: Final = "albert.encoder.albert_layer_groups.0.albert_layers.0"
ALBERT: Final = f"""
embedding albert.embeddings.{{word_embeddings,position_embeddings,token_type_embeddings}}.weight
embedding albert.encoder.embedding_hidden_mapping_in.{{weight,bias}}
attention {ALBERT_LAYER}.attention.{{query,key,value,dense}}.{{weight,bias}}
mlp       {ALBERT_LAYER}.{{ffn,ffn_output}}.{{weight,bias}}
norm      {ALBERT_LAYER}.{{attention.LayerNorm,full_layer_layer_norm}}.{{weight,bias}}
norm      {{albert.embeddings,predictions}}.LayerNorm.{{weight,bias}}
head      albert.pooler.{{weight,bias}} predictions.bias
head      {{predictions.dense,predictions.decoder,sop_classifier.classifier}}.{{weight,bias}}
"""
ELECTRA: Final = (
    BERT_LAYER.replace("bert.", "electra.")
    + """
embedding electra.embeddings.{word_embeddings,position_embeddings,token_type_embeddings}.weight
embedding electra.embeddings_project.{weight,bias}
head      discriminator_predictions.{dense,dense_prediction}.{weight,bias}
"""
)
DEBERTA: Final = """
embedding deberta.embeddings.{word_embeddings,position_embeddings}.weight
embedding deberta.encoder.rel_embeddings.weight
attention deberta.encoder.layer.0.attention.self.{q_bias,v_bias}
attention deberta.encoder.layer.0.attention.self.{in_proj,pos_proj,pos_q_proj}.weight
attention deberta.encoder.layer.0.attention.self.pos_q_proj.bias
attention deberta.encoder.layer.0.attention.output.dense.{weight,bias}
mlp       deberta.encoder.layer.0.{intermediate,output}.dense.{weight,bias}
norm      deberta.encoder.layer.0.{attention.output,output}.LayerNorm.{weight,bias}
norm      {deberta.embeddings,cls.predictions.transform}.LayerNorm.{weight,bias}
head      cls.predictions.bias cls.predictions.{transform.dense,decoder}.{weight,bias}
"""
DEBERTA_V2: Final = """
embedding deberta.embeddings.{word_embeddings,position_embeddings}.weight
embedding deberta.encoder.rel_embeddings.weight
attention deberta.encoder.layer.0.attention.self.{query_proj,key_proj,value_proj}.{weight,bias}
attention deberta.encoder.layer.0.attention.output.dense.{weight,bias}
mlp       deberta.encoder.layer.0.{intermediate,output}.dense.{weight,bias}
norm      deberta.encoder.layer.0.{attention.output,output}.LayerNorm.{weight,bias}
norm      deberta.{embeddings,encoder,encoder.conv}.LayerNorm.{weight,bias}
other     deberta.encoder.conv.conv.{weight,bias}
head      {pooler.dense,classifier}.{weight,bias}
"""
MODERNBERT: Final = """
embedding model.embeddings.tok_embeddings.weight
attention model.layers.{0,1}.attn.{Wqkv,Wo}.weight
mlp       model.layers.{0,1}.mlp.{Wi,Wo}.weight
norm      model.embeddings.norm.weight model.layers.{0,1}.mlp_norm.weight
norm      model.layers.1.attn_norm.weight model.final_norm.weight head.norm.weight
head      head.dense.weight decoder.{weight,bias}
"""
VIT: Final = """
embedding vit.embeddings.{cls_token,position_embeddings}
embedding vit.embeddings.patch_embeddings.projection.{weight,bias}
attention vit.layers.0.attention.{q_proj,k_proj,v_proj,o_proj}.{weight,bias}
mlp       vit.layers.0.mlp.{fc1,fc2}.{weight,bias}
norm      vit.layers.0.{layernorm_before,layernorm_after}.{weight,bias} vit.layernorm.{weight,bias}
head      classifier.{weight,bias}
"""
CLIP_LAYERS: Final = """
embedding text_model.embeddings.{token_embedding,position_embedding}.weight
embedding vision_model.embeddings.{patch_embedding,position_embedding}.weight
attention {text_model,vision_model}.encoder.layers.0.self_attn.{q_proj,k_proj}.{weight,bias}
attention {text_model,vision_model}.encoder.layers.0.self_attn.{v_proj,out_proj}.{weight,bias}
mlp       {text_model,vision_model}.encoder.layers.0.mlp.{fc1,fc2}.{weight,bias}
norm      {text_model,vision_model}.encoder.layers.0.{layer_norm1,layer_norm2}.{weight,bias}
norm      {text_model.final_layer_norm,vision_model.post_layernorm}.{weight,bias}
head      logit_scale
"""
CLIP: Final = (
    CLIP_LAYERS
    + """
embedding vision_model.embeddings.class_embedding
norm      vision_model.pre_layrnorm.{weight,bias}
head      {visual_projection,text_projection}.weight
"""
)
SIGLIP: Final = (
    CLIP_LAYERS
    + """
embedding vision_model.embeddings.patch_embedding.bias
norm      vision_model.head.layernorm.{weight,bias}
head      logit_bias text_model.head.{weight,bias} vision_model.head.probe
head      vision_model.head.attention.{in_proj_weight,in_proj_bias}
head      vision_model.head.{attention.out_proj,mlp.fc1,mlp.fc2}.{weight,bias}
"""
)
ENCODER_DECODER: Final = """
attention model.{encoder,decoder}.layers.0.self_attn.{q_proj,v_proj,out_proj}.{weight,bias}
attention model.decoder.layers.0.encoder_attn.{q_proj,v_proj,out_proj}.{weight,bias}
attention model.{encoder.layers.0.self_attn,decoder.layers.0.self_attn}.k_proj.weight
attention model.decoder.layers.0.encoder_attn.k_proj.weight
mlp       model.{encoder,decoder}.layers.0.{fc1,fc2}.{weight,bias}
norm      model.{encoder,decoder}.layers.0.{self_attn_layer_norm,final_layer_norm}.{weight,bias}
norm      model.decoder.layers.0.encoder_attn_layer_norm.{weight,bias}
embedding model.decoder.embed_tokens.weight model.{encoder,decoder}.embed_positions.weight
"""
WHISPER: Final = (
    ENCODER_DECODER
    + """
embedding model.encoder.{conv1,conv2}.{weight,bias}
norm      model.{encoder,decoder}.layer_norm.{weight,bias}
head      proj_out.weight
"""
)
BART: Final = (
    ENCODER_DECODER
    + """
embedding model.{shared,encoder.embed_tokens}.weight
attention model.{encoder.layers.0.self_attn,decoder.layers.0.self_attn}.k_proj.bias
attention model.decoder.layers.0.encoder_attn.k_proj.bias
norm      model.{encoder,decoder}.layernorm_embedding.{weight,bias}
"""
)
BART_LM: Final = BART + "head final_logits_bias lm_head.weight"
BART_CLASSIFIER: Final = BART + "head classification_head.{dense,out_proj}.{weight,bias}"

ONE_LAYER: Final = {"num_hidden_layers": 1}
TOWERS: Final = {"text_config": ONE_LAYER, "vision_config": ONE_LAYER}
ONE_OF_EACH: Final = {"encoder_layers": 1, "decoder_layers": 1}
DENSE_AND_MOE: Final = {"num_hidden_layers": 2, "first_k_dense_replace": 1}
RELATIVE: Final = ONE_LAYER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
TWO_EXPERTS: Final = {
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_experts": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family(model="LlamaForCausalLM", config="LlamaConfig", table=LLAMA),
    "mistral": Family(model="MistralForCausalLM", config="MistralConfig", table=LLAMA),
    "qwen2": Family(model="Qwen2ForCausalLM", config="Qwen2Config", table=QWEN2),
    "qwen3": Family(model="Qwen3ForCausalLM", config="Qwen3Config", table=QWEN3),
    "gemma": Family(model="GemmaForCausalLM", config="GemmaConfig", table=LLAMA),
    "gemma2": Family(model="Gemma2ForCausalLM", config="Gemma2Config", table=GEMMA2),
    "gemma3": Family(model="Gemma3ForCausalLM", config="Gemma3TextConfig", table=GEMMA3),
    "phi": Family(model="PhiForCausalLM", config="PhiConfig", table=PHI),
    "phi3": Family(model="Phi3ForCausalLM", config="Phi3Config", table=PHI3),
    "stablelm": Family(
        model="StableLmForCausalLM",
        config="StableLmConfig",
        table=STABLELM,
        options=ONE_LAYER
        | {"qk_layernorm": True, "use_qkv_bias": True}
        | {"num_attention_heads": 2, "num_key_value_heads": 2},
    ),
    "gpt2": Family(
        model="GPT2LMHeadModel", config="GPT2Config", table=GPT2, options={"n_layer": 1}
    ),
    "gpt-neo": Family(
        model="GPTNeoForCausalLM",
        config="GPTNeoConfig",
        table=GPT_NEO,
        options={"num_layers": 1, "attention_types": [[["global"], 1]]},
    ),
    "gpt-j": Family(
        model="GPTJForCausalLM", config="GPTJConfig", table=GPT_J, options={"n_layer": 1}
    ),
    "gpt-neox": Family(model="GPTNeoXForCausalLM", config="GPTNeoXConfig", table=GPT_NEOX),
    "opt": Family(
        model="OPTForCausalLM",
        config="OPTConfig",
        table=OPT,
        options=ONE_LAYER | {"word_embed_proj_dim": 512},
    ),
    "bloom": Family(
        model="BloomForCausalLM", config="BloomConfig", table=BLOOM, options={"n_layer": 1}
    ),
    "falcon": Family(model="FalconForCausalLM", config="FalconConfig", table=FALCON),
    "falcon-40b": Family(
        model="FalconForCausalLM",
        config="FalconConfig",
        table=FALCON_40B,
        options=ONE_LAYER | {"new_decoder_architecture": True, "bias": True},
    ),
    "mpt": Family(model="MptForCausalLM", config="MptConfig", table=MPT, options={"n_layers": 1}),
    "mixtral": Family(model="MixtralForCausalLM", config="MixtralConfig", table=MIXTRAL),
    "qwen2-moe": Family(model="Qwen2MoeForCausalLM", config="Qwen2MoeConfig", table=QWEN2_MOE),
    "qwen3-moe": Family(model="Qwen3MoeForCausalLM", config="Qwen3MoeConfig", table=QWEN3_MOE),
    "deepseek-v2": Family(
        model="DeepseekV2ForCausalLM",
        config="DeepseekV2Config",
        table=DEEPSEEK_V2,
        options=DENSE_AND_MOE,
    ),
    "deepseek-v3": Family(
        model="DeepseekV3ForCausalLM",
        config="DeepseekV3Config",
        table=DEEPSEEK_V3,
        options=DENSE_AND_MOE,
    ),
    "gpt-oss": Family(model="GptOssForCausalLM", config="GptOssConfig", table=GPT_OSS),
    "t5": Family(
        model="T5ForConditionalGeneration", config="T5Config", table=T5, options={"num_layers": 1}
    ),
    "flan-t5": Family(
        model="T5ForConditionalGeneration",
        config="T5Config",
        table=FLAN_T5,
        options={
            "num_layers": 1,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "switch": Family(
        model="SwitchTransformersForConditionalGeneration",
        config="SwitchTransformersConfig",
        table=SWITCH,
        options=TWO_EXPERTS,
    ),
    "bert": Family(model="BertForPreTraining", config="BertConfig", table=BERT_PRETRAINING),
    "bert-classifier": Family(
        model="BertForSequenceClassification", config="BertConfig", table=BERT_CLASSIFIER
    ),
    "bert-answers": Family(
        model="BertForQuestionAnswering", config="BertConfig", table=BERT_ANSWERS
    ),
    "roberta": Family(model="RobertaForMaskedLM", config="RobertaConfig", table=ROBERTA),
    "distilbert": Family(
        model="DistilBertForMaskedLM",
        config="DistilBertConfig",
        table=DISTILBERT_LM,
        options={"n_layers": 1},
    ),
    "distilbert-classifier": Family(
        model="DistilBertForSequenceClassification",
        config="DistilBertConfig",
        table=DISTILBERT_CLASSIFIER,
        options={"n_layers": 1},
    ),
    "albert": Family(model="AlbertForPreTraining", config="AlbertConfig", table=ALBERT),
    "electra": Family(model="ElectraForPreTraining", config="ElectraConfig", table=ELECTRA),
    "deberta": Family(
        model="DebertaForMaskedLM", config="DebertaConfig", table=DEBERTA, options=RELATIVE
    ),
    "deberta-v2": Family(
        model="DebertaV2ForSequenceClassification",
        config="DebertaV2Config",
        table=DEBERTA_V2,
        options=RELATIVE
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
    ),
    "modernbert": Family(
        model="ModernBertForMaskedLM",
        config="ModernBertConfig",
        table=MODERNBERT,
        # The first layer has no norm before its attention.
        options={"num_hidden_layers": 2},
    ),
    "vit": Family(model="ViTForImageClassification", config="ViTConfig", table=VIT),
    "clip": Family(model="CLIPModel", config="CLIPConfig", table=CLIP, options=TOWERS),
    "siglip": Family(model="SiglipModel", config="SiglipConfig", table=SIGLIP, options=TOWERS),
    "whisper": Family(
        model="WhisperForConditionalGeneration",
        config="WhisperConfig",
        table=WHISPER,
        options=ONE_OF_EACH,
    ),
    "bart": Family(
        model="BartForConditionalGeneration",
        config="BartConfig",
        table=BART_LM,
        options=ONE_OF_EACH,
    ),
    "bart-classifier": Family(
        model="BartForSequenceClassification",
        config="BartConfig",
        table=BART_CLASSIFIER,
        options=ONE_OF_EACH,
    ),
}

# Spellings that checkpoints have on disk, or had before transformers 5: group, whether the tensor
# may be one-bit, shape, name.
ON_DISK: Final[tuple[tuple[str, bool, tuple[int, ...], str], ...]] = (
    # MiniLM-L6, a BERT without prefix
    ("embedding", False, (30522, 384), "embeddings.word_embeddings.weight"),
    ("embedding", False, (512, 384), "embeddings.position_embeddings.weight"),
    ("embedding", False, (2, 384), "embeddings.token_type_embeddings.weight"),
    ("other", False, (1, 512), "embeddings.position_ids"),
    ("norm", False, (384,), "embeddings.LayerNorm.weight"),
    ("attention", True, (384, 384), "encoder.layer.0.attention.self.query.weight"),
    ("attention", False, (384,), "encoder.layer.0.attention.self.query.bias"),
    ("attention", True, (384, 384), "encoder.layer.0.attention.output.dense.weight"),
    ("norm", False, (384,), "encoder.layer.0.attention.output.LayerNorm.weight"),
    ("mlp", True, (1536, 384), "encoder.layer.0.intermediate.dense.weight"),
    ("mlp", True, (384, 1536), "encoder.layer.0.output.dense.weight"),
    ("norm", False, (384,), "encoder.layer.0.output.LayerNorm.bias"),
    ("head", False, (384, 384), "pooler.dense.weight"),
    # BERT: TensorFlow's names of norms, cross-attention, buffers
    ("norm", False, (768,), "bert.embeddings.LayerNorm.gamma"),
    ("norm", False, (768,), "bert.embeddings.LayerNorm.beta"),
    ("attention", True, (768, 768), "bert.encoder.layer.0.crossattention.self.query.weight"),
    ("other", False, (1, 512), "roberta.embeddings.token_type_ids"),
    # Llama of 2023, with its rotary buffer; a classifier on Llama
    ("other", False, (64,), "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ("other", False, (1, 1, 4096, 128), "model.layers.0.self_attn.rotary_emb.cos_cached"),
    ("head", False, (2, 4096), "score.weight"),
    # Llama as released by Meta; InternLM2
    ("embedding", False, (32000, 4096), "tok_embeddings.weight"),
    ("attention", True, (4096, 4096), "layers.0.attention.wq.weight"),
    ("mlp", True, (11008, 4096), "layers.0.feed_forward.w1.weight"),
    ("norm", False, (4096,), "layers.0.attention_norm.weight"),
    ("norm", False, (4096,), "layers.0.ffn_norm.weight"),
    ("head", False, (32000, 4096), "output.weight"),
    # GPT-2 of OpenAI: no prefix, and the causal mask as a buffer
    ("embedding", False, (1024, 768), "wpe.weight"),
    ("attention", True, (768, 2304), "h.0.attn.c_attn.weight"),
    ("mlp", True, (3072, 768), "h.0.mlp.c_proj.weight"),
    ("norm", False, (768,), "ln_f.weight"),
    ("other", False, (1, 1, 1024, 1024), "h.0.attn.bias"),
    ("other", False, (1, 1, 2048, 2048), "transformer.h.0.attn.attention.bias"),
    ("other", False, (), "transformer.h.0.attn.masked_bias"),
    ("attention", False, (768,), "transformer.h.0.attn.bias"),
    ("other", False, (1, 1, 2048, 2048), "transformer.h.0.attn.causal_mask"),
    # GPT-NeoX and Pythia
    ("other", False, (1, 1, 2048, 2048), "gpt_neox.layers.0.attention.bias"),
    ("other", False, (), "gpt_neox.layers.0.attention.masked_bias"),
    ("other", False, (16,), "gpt_neox.layers.0.attention.rotary_emb.inv_freq"),
    ("head", False, (50304, 512), "embed_out.weight"),
    # BLOOM without prefix; ChatGLM; MPT with normalised queries
    ("norm", False, (1024,), "word_embeddings_layernorm.weight"),
    ("attention", True, (3072, 1024), "h.0.self_attention.query_key_value.weight"),
    ("head", False, (65024, 4096), "transformer.output_layer.weight"),
    ("norm", False, (4096,), "transformer.blocks.0.attn.q_ln.weight"),
    # OPT without prefix
    ("mlp", True, (3072, 768), "decoder.layers.0.fc1.weight"),
    # Mixtral, split experts
    ("router", False, (8, 4096), "model.layers.0.block_sparse_moe.gate.weight"),
    ("mlp", True, (14336, 4096), "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    ("mlp", True, (4096, 14336), "model.layers.0.block_sparse_moe.experts.7.w2.weight"),
    ("mlp", True, (14336, 4096), "model.layers.0.block_sparse_moe.experts.7.w3.weight"),
    # Granite MoE
    ("router", False, (40, 1536), "model.layers.0.block_sparse_moe.router.layer.weight"),
    ("mlp", True, (40, 1024, 1536), "model.layers.0.block_sparse_moe.input_linear.weight"),
    # Qwen-MoE and DeepSeek, split experts
    ("mlp", True, (1408, 2048), "model.layers.0.mlp.experts.59.gate_proj.weight"),
    ("mlp", True, (2048, 1408), "model.layers.0.mlp.experts.59.down_proj.weight"),
    # DeepSeek-V3: scales of float8 weights, the layer that predicts several tokens
    ("attention", False, (192, 128), "model.layers.0.self_attn.q_b_proj.weight_scale_inv"),
    ("mlp", False, (144, 56), "model.layers.3.mlp.experts.0.up_proj.weight_scale_inv"),
    ("norm", False, (7168,), "model.layers.61.enorm.weight"),
    ("other", False, (7168, 14336), "model.layers.61.eh_proj.weight"),
    ("head", False, (129280, 7168), "model.layers.61.shared_head.head.weight"),
    ("norm", False, (7168,), "model.layers.61.shared_head.norm.weight"),
    # DeepSeek-V3 in its own code; LFM2
    ("router", False, (256, 7168), "layers.3.ffn.gate.weight"),
    ("router", False, (256,), "layers.3.ffn.gate.bias"),
    ("router", False, (32, 2048), "model.layers.2.feed_forward.gate.weight"),
    # GPT-OSS, experts in MXFP4
    ("mlp", False, (32, 5760, 90, 16), "model.layers.0.mlp.experts.gate_up_proj_blocks"),
    ("mlp", False, (32, 5760, 90), "model.layers.0.mlp.experts.gate_up_proj_scales"),
    # Llama 4 and DBRX
    ("router", False, (16, 5120), "model.layers.0.feed_forward.router.weight"),
    ("mlp", True, (8192, 5120), "model.layers.0.feed_forward.shared_expert.up_proj.weight"),
    ("mlp", True, (172032, 6144), "transformer.blocks.0.ffn.experts.mlp.w1"),
    ("norm", False, (6144,), "transformer.blocks.0.norm_attn_norm.norm_1.weight"),
    # Qwen3-Next and other hybrids
    ("attention", False, (8192, 1, 4), "model.layers.0.linear_attn.conv1d.weight"),
    ("attention", True, (12288, 2048), "model.layers.0.linear_attn.in_proj_qkvz.weight"),
    ("other", False, (16384, 4096), "model.layers.0.mamba.in_proj.weight"),
    # weights quantised by GPTQ
    ("mlp", False, (512, 11008), "model.layers.0.mlp.up_proj.qweight"),
    ("mlp", False, (32, 1376), "model.layers.0.mlp.up_proj.qzeros"),
    ("mlp", False, (32, 11008), "model.layers.0.mlp.up_proj.scales"),
    # Granite hybrid, Funnel, Mllama, SAM, RWKV
    ("mlp", True, (2048, 4096), "model.layers.0.shared_mlp.input_linear.weight"),
    ("attention", True, (768, 768), "funnel.encoder.blocks.0.1.attention.q_head.weight"),
    ("attention", True, (4096, 4096), "model.layers.3.cross_attn.q_proj.weight"),
    ("embedding", False, (127, 64), "vision_encoder.layers.0.attn.rel_pos_h"),
    ("norm", False, (4096,), "rwkv.blocks.0.ln1.weight"),
    # LongT5, MPNet
    ("attention", True, (768, 768), "encoder.block.0.layer.0.LocalSelfAttention.q.weight"),
    ("embedding", False, (32, 12), "mpnet.encoder.relative_attention_bias.weight"),
    # ViT and DeiT before transformers 5, ViT of timm, DINOv2, BEiT
    ("attention", True, (768, 768), "vit.encoder.layer.0.attention.attention.query.weight"),
    ("attention", True, (768, 768), "vit.encoder.layer.0.attention.output.dense.weight"),
    ("mlp", True, (3072, 768), "vit.encoder.layer.0.intermediate.dense.weight"),
    ("mlp", True, (768, 3072), "vit.encoder.layer.0.output.dense.weight"),
    ("embedding", False, (1, 1, 768), "cls_token"),
    ("embedding", False, (1, 197, 768), "pos_embed"),
    ("embedding", False, (768, 3, 16, 16), "patch_embed.proj.weight"),
    ("attention", True, (2304, 768), "blocks.0.attn.qkv.weight"),
    ("norm", False, (768,), "blocks.0.norm1.weight"),
    ("norm", False, (768,), "blocks.0.ls1.gamma"),
    ("norm", False, (768,), "blocks.0.ls2.gamma"),
    ("head", False, (1000, 768), "head.weight"),
    ("norm", False, (768,), "encoder.layer.0.layer_scale1.lambda1"),
    ("embedding", False, (732, 12), "layer.0.attention.relative_position_bias_table"),
    ("other", False, (197, 197), "layer.0.attention.relative_position_index"),
    # LLaVA
    ("embedding", False, (4096, 1024), "model.multi_modal_projector.linear_1.weight"),
    ("attention", True, (4096, 4096), "language_model.model.layers.0.self_attn.q_proj.weight"),
    ("mlp", True, (4096, 1024), "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"),
    # nothing known
    ("other", False, (768, 768), "thing.weight"),
    ("other", False, (), "0"),
)

PREFIXES: Final = ("model.", "transformer.", "bert.", "vision_model.", "base_model.model.", "0.")


def build(family: Family) -> Any:
    """Build the model without weights."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, family.config)(**family.options)
    with torch.device("meta"):
        return getattr(transformers, family.model)(config)


def shapes_of(model: Any) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def linear_modules(model: Any) -> set[str]:
    """The weights of linear layers and of fused experts, told by the classes of the modules."""
    names: set[str] = set()
    for path, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.nn.Linear) or kind == "Conv1D":
            names.add(f"{path}.weight")
        elif kind.endswith("Experts"):
            own = module.named_parameters(recurse=False)
            names.update(f"{path}.{name}" for name, tensor in own if tensor.ndim == 3)
    return names


def in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_tensor_of_a_family(family: Family) -> None:
    model = build(family)
    shapes = shapes_of(model)
    expected = read_table(family.table)
    assigned = assign_groups(shapes)
    assert assigned == expected
    assert list(assigned) == list(shapes)

    linear = linear_modules(model)
    outside = {name for name in linear if in_block(name)} - {
        name for name, group in expected.items() if group in ("attention", "mlp", "router")
    }
    assert not outside
    one_bit = {name for name in shapes if is_linear_weight(name, shapes[name], assigned[name])}
    assert one_bit == {name for name in linear if expected[name] in ("attention", "mlp")}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_prefixes_do_not_matter(family: Family) -> None:
    for name, group in read_table(family.table).items():
        # The shape decides for one buffer only, which no model has in memory any more.
        assert layer_group(name, (64, 64)) == group
        for prefix in PREFIXES:
            assert layer_group(prefix + name, (64, 64)) == group, prefix + name
        first, _, rest = name.partition(".")
        if first in ("model", "transformer", "gpt_neox", "bert", "roberta", "deberta", "vit"):
            assert layer_group(rest, (64, 64)) == group, rest


@pytest.mark.parametrize(("group", "one_bit", "shape", "name"), ON_DISK)
def test_spellings_on_disk(group: str, one_bit: bool, shape: tuple[int, ...], name: str) -> None:
    assert layer_group(name, shape) == group
    assert is_linear_weight(name, shape, group) is one_bit


def test_tied_heads_share_no_group() -> None:
    """A tied head is the embedding's tensor under a second name; each name keeps its group."""
    model = build(Family(model="GPT2LMHeadModel", config="GPT2Config", table="", options={}))
    assert model.lm_head.weight is model.transformer.wte.weight
    assigned = assign_groups(shapes_of(model))
    assert assigned["lm_head.weight"] == "head"
    assert assigned["transformer.wte.weight"] == "embedding"


def test_order_of_groups() -> None:
    assert GROUPS == ("attention", "mlp", "embedding", "head", "norm", "router", "other")


def test_every_pattern_is_used() -> None:
    """Each pattern decides the group of a tensor above; a dead one is a mistake in the table."""
    names = {name for _, _, _, name in ON_DISK}
    names.update(name for family in FAMILIES.values() for name in read_table(family.table))
    paths = {groups._path(name) for name in names}
    for family in families.FAMILIES:
        for rule in family.rules:
            assert rule.group in GROUPS
            for pattern in rule.patterns:
                hits = {path for path in paths if groups._compile([pattern]).fullmatch(path)}
                assert hits, (family.name, pattern)
                paths_won = {path for path in hits if winner(path, rule.ndim) is rule}
                assert paths_won, (family.name, pattern)


def winner(path: str, ndim: int | None) -> families.Rule | None:
    for expression, rule in groups._RULES:
        if rule.ndim in (None, ndim) and expression.fullmatch(path):
            return rule
    return None


SMALL: Final[Shapes] = {
    f"model.layers.{layer}.{part}.weight": (64, 64)
    for layer in range(3)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
}


def test_later_overrides_win() -> None:
    assigned = assign_groups(
        SMALL,
        (
            Override(pattern="*.mlp.*", group="other"),
            Override(pattern="model.layers.0.*", group="norm"),
            Override(pattern="model.layers.0.mlp.up_proj.weight", group="head"),
        ),
    )
    assert assigned["model.layers.0.mlp.up_proj.weight"] == "head"
    assert assigned["model.layers.0.self_attn.q_proj.weight"] == "norm"
    assert assigned["model.layers.1.mlp.up_proj.weight"] == "other"
    assert assigned["model.layers.1.self_attn.q_proj.weight"] == "attention"


def test_overrides_match_the_full_name_with_case() -> None:
    for pattern in ("self_attn.*", "*.MLP.*", "*.layers.?"):
        with pytest.raises(UsageError, match="matches no tensor"):
            assign_groups(SMALL, [Override(pattern=pattern, group="mlp")])


def test_override_that_matches_nothing_names_near_tensors() -> None:
    with pytest.raises(UsageError) as caught:
        assign_groups(SMALL, [Override(pattern="*.layers.9.self_attn.q_prj.*", group="mlp")])
    assert str(caught.value) == (
        "override '*.layers.9.self_attn.q_prj.*' matches no tensor; near names: "
        "model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.o_proj.weight, "
        "model.layers.0.mlp.up_proj.weight"
    )


def test_override_far_from_every_name() -> None:
    with pytest.raises(UsageError) as caught:
        assign_groups({"a.weight": (2,)}, [Override(pattern="ZZZ*", group="mlp")])
    assert str(caught.value) == "override 'ZZZ*' matches no tensor"


def test_override_of_an_unknown_group() -> None:
    with pytest.raises(UsageError) as caught:
        assign_groups(SMALL, [Override(pattern="*", group="Attention")])
    assert str(caught.value) == (
        "override '*': unknown group 'Attention'; "
        "the groups are attention, mlp, embedding, head, norm, router, other"
    )


def test_no_tensors() -> None:
    assert assign_groups({}) == {}


@pytest.mark.parametrize(
    ("name", "shape", "one_bit"),
    [
        ("q_proj.weight", (64, 64), True),
        ("q_proj.weight", (63, 65), False),
        ("q_proj.weight", (4096,), False),
        ("q_proj.weight", (2048, 2), True),
        ("time_mix_key", (1, 1, 4096), False),
        ("gate.weight", (4096, 1), False),
        ("q_proj.weight", (0, 4096), False),
        ("experts.up_proj", (8, 512, 8), True),
        ("mixer.conv1d.weight", (8192, 1, 4), False),
        ("pointwise.weight", (512, 512, 1), False),
        ("module.depthwise.weight", (768, 1, 31), False),
        ("conv.weight", (768, 48, 128), False),
        ("mixer.rel_pos_h", (127, 64), False),
        ("pointwise.weight", (64, 64, 3, 7), False),
        ("q_proj.bias", (128, 64), False),
        ("experts.gate_up_proj_bias", (128, 5760), False),
        ("self.q_bias", (128, 64), False),
        # put into attention by an override
        ("SelfAttention.relative_attention_bias.weight", (512, 12), False),
        ("attention.relative_position_bias_table", (732, 12), False),
        ("encoder.rel_embeddings.weight", (1024, 768), False),
        ("anything.kernel", (64, 64), True),
    ],
)
def test_linear_weights(name: str, shape: tuple[int, ...], one_bit: bool) -> None:
    assert is_linear_weight(name, shape, "attention") is one_bit
    assert is_linear_weight(name, shape, "mlp") is one_bit
    for group in ("embedding", "head", "norm", "router", "other"):
        assert not is_linear_weight(name, shape, group)
