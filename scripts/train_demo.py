#!/usr/bin/env python3
"""Trains zorai-demo, a toy language model, on this repository's own texts, and writes it as GGUF.

It is there so that an endpoint can answer on a machine without any other model, and knows nothing. Half an hour on two
processors. The seed is fixed, but whether two runs give the same file was not tried. Needs the packages jax, tokenizers,
numpy and gguf.

    scripts/train_demo.py models/zorai-demo.gguf
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import time

import gguf
import jax
import jax.numpy as jnp
import numpy
import tokenizers

NAME = "zorai-demo"
ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = ["*.md", "docs/**/*.md", "bench/*.md", "contracts/*.md", "packaging/*.md", "demo/*.md", "demo/text.txt"]
CONVERSATIONS = ROOT / "models/chat.txt"

SEED = 20_260_505
WORDS = 1024
WIDTH = 192
LAYERS = 5
HEADS = 6
KEY_VALUE_HEADS = 2
HEAD = WIDTH // HEADS
INNER = 512
CONTEXT = 1024
EPSILON = 1e-5
ROPE_BASE = 10_000.0

BATCH = 8
# What one sequence holds in training. The last steps use the whole context, so that late places are learnt too.
WINDOW = 256
PEAK_RATE = 3e-3
WARM_UP = 100
DECAY = 0.05

END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, TURN_BEGINS, TURN_ENDS]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def documents():
    """The texts: documents as they are, and what the source code says in words."""
    paths = sorted({path for pattern in DOCUMENTS for path in ROOT.glob(pattern)})
    texts = [path.read_text() for path in paths]
    for path in sorted(ROOT.glob("crates/*/src/**/*.rs")):
        words = [re.sub(r"^\s*//[/!] ?", "", line) for line in path.read_text().splitlines()
                 if re.match(r"\s*//[/!]", line)]
        if words:
            texts.append("\n".join(words))
    return texts


def conversations():
    """Pairs of a question and its answer."""
    blocks = CONVERSATIONS.read_text().strip().split("\n\n")
    for block in blocks:
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            questions, answer = lines[0].split(" | "), " ".join(lines[1:])
            yield from ((question, answer) for question in questions)


def train_tokenizer(texts):
    """A byte-level BPE over the texts."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == WORDS, tokenizer.get_vocab_size()
    return tokenizer


def initial(random):
    """The weights before training, by the names that GGUF has for them."""
    def made_up(rows, columns, scale=0.02):
        return jnp.asarray(random.standard_normal((rows, columns)) * scale, jnp.float32)

    weights = {"token_embd.weight": made_up(WORDS, WIDTH), "output_norm.weight": jnp.ones(WIDTH)}
    into_stream = 0.02 / math.sqrt(2 * LAYERS)
    for layer in range(LAYERS):
        weights |= {
            f"blk.{layer}.attn_norm.weight": jnp.ones(WIDTH),
            f"blk.{layer}.attn_q.weight": made_up(WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": made_up(KEY_VALUE_HEADS * HEAD, WIDTH),
            f"blk.{layer}.attn_v.weight": made_up(KEY_VALUE_HEADS * HEAD, WIDTH),
            f"blk.{layer}.attn_output.weight": made_up(WIDTH, WIDTH, into_stream),
            f"blk.{layer}.ffn_norm.weight": jnp.ones(WIDTH),
            f"blk.{layer}.ffn_gate.weight": made_up(INNER, WIDTH),
            f"blk.{layer}.ffn_up.weight": made_up(INNER, WIDTH),
            f"blk.{layer}.ffn_down.weight": made_up(WIDTH, INNER, into_stream),
        }
    return weights


def normalised(x, weight):
    """RMS normalisation."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPSILON) * weight


def rotated(x):
    """Rotary embedding of neighbouring pairs, as llama.cpp has it for this architecture. `x` is batch, place, head, width."""
    frequencies = ROPE_BASE ** (-jnp.arange(0, HEAD, 2) / HEAD)
    angles = jnp.arange(x.shape[1])[:, None] * frequencies
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def logits(weights, tokens):
    """What comes next at each place."""
    batch, length = tokens.shape
    x = weights["token_embd.weight"][tokens]
    causal = jnp.tril(jnp.ones((length, length), bool))
    for layer in range(LAYERS):
        of = lambda name: weights[f"blk.{layer}.{name}.weight"]
        y = normalised(x, of("attn_norm"))
        q = rotated((y @ of("attn_q").T).reshape(batch, length, HEADS, HEAD))
        k = rotated((y @ of("attn_k").T).reshape(batch, length, KEY_VALUE_HEADS, HEAD))
        v = (y @ of("attn_v").T).reshape(batch, length, KEY_VALUE_HEADS, HEAD)
        k, v = (jnp.repeat(z, HEADS // KEY_VALUE_HEADS, 2) for z in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(HEAD)
        shares = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(batch, length, WIDTH)
        x = x + mixed @ of("attn_output").T
        y = normalised(x, of("ffn_norm"))
        x = x + (jax.nn.silu(y @ of("ffn_gate").T) * (y @ of("ffn_up").T)) @ of("ffn_down").T
    return normalised(x, weights["output_norm.weight"]) @ weights["token_embd.weight"].T


def loss(weights, tokens):
    """The mean cross entropy of each token after the first, in nats."""
    chances = jax.nn.log_softmax(logits(weights, tokens[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(chances, tokens[:, 1:, None], -1))


@jax.jit
def step(weights, first, second, number, rate, tokens):
    """One step of AdamW."""
    value, slope = jax.value_and_grad(loss)(weights, tokens)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(slope)))
    slope = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / (norm + 1e-9)), slope)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
    second = jax.tree.map(lambda v, g: 0.98 * v + 0.02 * g * g, second, slope)

    def moved(w, m, v):
        change = (m / (1 - 0.9**number)) / (jnp.sqrt(v / (1 - 0.98**number)) + 1e-8)
        return w - rate * (change + (DECAY * w if w.ndim > 1 else 0.0))

    return jax.tree.map(moved, weights, first, second), first, second, value


class Samples:
    """Windows of the documents, and packed conversations, in turns."""

    def __init__(self, tokenizer, texts, pairs, random):
        self.random = random
        encode = lambda text: tokenizer.encode(text).ids
        end = SPECIAL.index(END_OF_TEXT)
        streams = [[*encode(text), end] for text in texts]
        self.words = numpy.concatenate([numpy.array(stream) for stream in streams])
        turn = lambda role, text: f"{TURN_BEGINS}{role}\n{text}{TURN_ENDS}\n"
        self.pairs = [[*encode(turn("user", question) + turn("assistant", answer)), end] for question, answer in pairs]

    def batch(self, rows, length):
        """Rows of `length` + 1 tokens: every second one of conversations."""
        def window():
            start = self.random.integers(0, len(self.words) - length - 1)
            return self.words[start : start + length + 1]

        def packed():
            row = []
            while len(row) <= length:
                # Some go on after their first answer.
                row += self.pairs[self.random.integers(len(self.pairs))][: None if self.random.random() < 0.5 else -1]
            return numpy.array(row[: length + 1])

        return jnp.asarray(numpy.stack([packed() if row % 2 else window() for row in range(rows)]))


def train(samples, random, steps):
    """Trains from nothing, and says how it goes."""
    weights = initial(random)
    first = jax.tree.map(jnp.zeros_like, weights)
    second = jax.tree.map(jnp.zeros_like, weights)
    check = samples.batch(BATCH, WINDOW)
    before, began, recent = float(loss(weights, check)), time.monotonic(), []
    print(f"loss before: {before:.3f}", flush=True)
    for number in range(1, steps + 1):
        rate = PEAK_RATE * min(number / WARM_UP, 0.5 * (1 + math.cos(math.pi * number / steps)) + 0.02)
        late = number > steps * 0.85
        tokens = samples.batch(BATCH // 4, CONTEXT) if late else samples.batch(BATCH, WINDOW)
        weights, first, second, value = step(weights, first, second, number, rate, tokens)
        recent.append(float(value))
        if number % 100 == 0 or number == steps:
            spent = time.monotonic() - began
            print(f"step {number}: loss {numpy.mean(recent[-100:]):.3f}, {spent:.0f} s", flush=True)
    return weights, before, float(numpy.mean(recent[-100:]))


def write(path, weights, tokenizer, story):
    """Writes the model as GGUF: matrices in Q8_0, the rest in 32 bits."""
    kind = gguf.TokenType
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(NAME)
    writer.add_description(story)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([kind.CONTROL if word in SPECIAL else kind.NORMAL for word, _ in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(SPECIAL.index(END_OF_TEXT))
    writer.add_eos_token_id(SPECIAL.index(TURN_ENDS))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in weights.items():
        array = numpy.asarray(weight, numpy.float32)
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            small = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, small, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.gguf", help="the file to write")
    parser.add_argument("--steps", type=int, default=1200, help="steps of training [default: %(default)s]")
    arguments = parser.parse_args()
    texts, pairs = documents(), list(conversations())
    corpus = "\0".join(texts + [text for pair in pairs for text in pair]).encode()
    print(f"{len(texts)} texts and {len(pairs)} questions, {len(corpus)} bytes, SHA-256 {hashlib.sha256(corpus).hexdigest()}")
    tokenizer = train_tokenizer(texts + [answer for _, answer in pairs])
    random = numpy.random.Generator(numpy.random.PCG64(SEED))
    samples = Samples(tokenizer, texts, pairs, random)
    count = sum(weight.size for weight in initial(numpy.random.Generator(numpy.random.PCG64(SEED))).values())
    print(f"{len(samples.words)} tokens of documents, {count} weights")
    weights, before, after = train(samples, random, arguments.steps)
    story = (
        "A toy, trained on the texts of the ZORAI compute market's repository so that its endpoint answers on a machine "
        f"without another model. It knows nothing. Loss {before:.2f} before training, {after:.2f} after."
    )
    write(arguments.out, weights, tokenizer, story)
    data = pathlib.Path(arguments.out).read_bytes()
    print(f"{arguments.out}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
