"""Write the checkpoint that make_checkpoint.py made as a GGUF file in 16 bit.

llama.cpp's own converter knows tokenizers by their hash, and this small vocabulary is not among
them, so the few fields are written here.

    pip install gguf==0.19.0 torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
    python make_gguf.py hf tiny-r1-f16.gguf
    llama-quantize tiny-r1-f16.gguf tiny-r1-q4_k_m.gguf Q4_K_M

llama-quantize is part of llama.cpp.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight"""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}.{kind}"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def add_shape(writer: gguf.GGUFWriter, config: dict) -> None:
    writer.add_name("tiny-r1-qwen")
    writer.add_description("test model: R1 tokens and template, overfitted on nine answers")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def add_tokenizer(
    writer: gguf.GGUFWriter, config: dict, tokenizer: dict, tokenizer_config: dict
) -> None:
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    plain = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    texts, types = [], []
    for number in range(config["vocab_size"]):
        if number in added:
            special = added[number]["special"]
            texts.append(added[number]["content"])
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        elif number in plain:
            texts.append(plain[number])
            types.append(gguf.TokenType.NORMAL)
        else:
            texts.append(f"[PAD{number}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-r1-qwen")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    )
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer_config["chat_template"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder that make_checkpoint.py wrote")
    parser.add_argument("out", type=Path, help="the GGUF file")
    options = parser.parse_args()

    config = read_json(options.checkpoint / "config.json")
    writer = gguf.GGUFWriter(str(options.out), "qwen2")
    add_shape(writer, config)
    add_tokenizer(
        writer,
        config,
        read_json(options.checkpoint / "tokenizer.json"),
        read_json(options.checkpoint / "tokenizer_config.json"),
    )
    for name, tensor in load_file(options.checkpoint / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        values = values.astype(np.float32 if values.ndim == 1 else np.float16)
        writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
