#!/usr/bin/env python3
"""Writes a tiny Llama-shaped model with made-up weights in GGUF, for tests against a real engine.

What it says makes no sense; it is there to be served. The file has the same bytes each time.
Needs the packages gguf and numpy.

    scripts/make_tiny_gguf.py OUT.gguf
"""

import argparse

import gguf
import numpy

WIDTH = 64
LAYERS = 2
HEADS = 4
KEY_VALUE_HEADS = 2
INNER = 160
# Long enough for a test to cancel an answer that would take seconds.
CONTEXT = 8192
SEED = 20_240_229
SCALE = 0.25

# `<unk>`, `<s>` and `</s>`, one token for each byte, and a few pieces, so that texts have tokens of several kinds.
CONTROL = ["<unk>", "<s>", "</s>"]
PIECES = ["\u2581", *"etaoinshrdlucmfwypvbgkqjxz", *".,:;!?-0123456789", "\u2581the", "\u2581task", "\u2581relay", "\u2581market"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }}\n{% endfor %}<assistant>"
)


def vocabulary():
    """The tokens with their scores and kinds, in the order of their ids."""
    kind = gguf.TokenType
    tokens = [(text.encode(), 0.0, kind.UNKNOWN if text == "<unk>" else kind.CONTROL) for text in CONTROL]
    tokens += [(f"<0x{byte:02X}>".encode(), 0.0, kind.BYTE) for byte in range(256)]
    tokens += [(text.encode(), -float(place), kind.NORMAL) for place, text in enumerate(PIECES)]
    return tokens


def tensors(tokens):
    """The names and weights of all tensors."""
    words = len(tokens)
    random = numpy.random.Generator(numpy.random.PCG64(SEED))

    def made_up(*shape):
        return (random.standard_normal(shape) * SCALE).astype(numpy.float32)

    ones = numpy.ones(WIDTH, dtype=numpy.float32)
    head = WIDTH // HEADS
    yield "token_embd.weight", made_up(words, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", ones
        yield f"{block}.attn_q.weight", made_up(WIDTH, WIDTH)
        yield f"{block}.attn_k.weight", made_up(KEY_VALUE_HEADS * head, WIDTH)
        yield f"{block}.attn_v.weight", made_up(KEY_VALUE_HEADS * head, WIDTH)
        yield f"{block}.attn_output.weight", made_up(WIDTH, WIDTH)
        yield f"{block}.ffn_norm.weight", ones
        yield f"{block}.ffn_gate.weight", made_up(INNER, WIDTH)
        yield f"{block}.ffn_up.weight", made_up(INNER, WIDTH)
        yield f"{block}.ffn_down.weight", made_up(WIDTH, INNER)
    yield "output_norm.weight", ones
    # Pieces of text outweigh all else, so that the likeliest answer is text and goes on to its limit.
    output = made_up(words, WIDTH)
    output[[kind != gguf.TokenType.NORMAL for _, _, kind in tokens]] = 0
    yield "output.weight", output


def write(path):
    """Writes the model."""
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("zorai-tiny-test")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _, _ in tokens])
    writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weights in tensors(tokens):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.gguf", help="the file to write")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
