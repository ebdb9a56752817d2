"""Prints a SentencePiece model as a `tokenizer.json` the way XLM-RoBERTa's is written, and what SentencePiece makes of some texts.

    pip install sentencepiece && python3 unigram.py TEXT [RULES]

The model is trained on the file TEXT within a moment. What it puts in place of characters is Unicode's NFKC with SentencePiece's own
changes to it, or, to have a small table, the RULES of a file (see SentencePiece's `--normalization_rule_tsv`).
"""

import base64
import io
import json
import struct
import sys

import sentencepiece

# Of several scripts, and of what is put in place of something else: ligatures, full width, marks that stand alone, spaces of all kinds.
TEXTS = [
    "Provisioning a machine takes a moment; the rest is waiting.",
    "  two  spaces   and\ta tab, a no-break\u00a0space, an ideographic\u3000one and a zero-width\u200bone  ",
    "ﬁve ﬄuent ﬁgures, ①②③, ℡ ™ ㎏ ½ Å",
    "ＡＢＣ ｆｕｌｌ　ｗｉｄｔｈ ｶﾞｷﾞ",
    "cafe\u0301 caf\u00e9 e\u0301\u0323 A\u030a o\u0308\u0304 \u0301alone",
    "Größe, naïve, Øre, Žižek, ŀ, ĳ, ŉ",
    "Москва, Αθήνα, ירושלים, القاهرة ﷺ ﷽",
    "日本語のテキスト、中文文本，한국어 한글",
    "👩\u200d👩\u200d👧 👍🏽 🇺🇳 \ufe0f",
    "control \u0001\u0007\u001f characters\u007f and \ufeff and \u00ad",
    "▁ the mark itself ▁▁ twice",
    "क्षत्रिय தமிழ் ไทย",
    "x",
    "ſ \u1e9b\u0323 \u2126 \u212b \uf900",
]


def fields(message):
    """The fields of a protocol buffer: numbers with their values."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            value = varint()
        elif kind == 2:
            length = varint()
            value = message[at : at + length]
            at += length
        else:
            length = {1: 8, 5: 4}[kind]
            value = message[at : at + length]
            at += length
        yield key >> 3, value


def main(text, rules=None):
    model = io.BytesIO()
    normalization = {"normalization_rule_tsv": rules} if rules else {"normalization_rule_name": "nmt_nfkc"}
    with open(text, encoding="utf-8") as file:
        lines = [line for line in file if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="unigram",
        vocab_size=600, minloglevel=2, num_threads=1, **normalization,
    )
    pieces, table = [], b""
    for number, value in fields(model.getvalue()):
        if number == 1:
            piece = dict(fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0]))
        elif number == 3:
            table = dict(fields(value))[2]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "decoder": None,
        "added_tokens": [{"id": id, "content": content, **added} for id, content in enumerate(special)],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True},
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                               "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        },
        # XLM-RoBERTa's numbers: SentencePiece's first three are others there.
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [(name, 0.0) for name in special] + pieces[3:]},
    }
    expected = [[text, [0, *(id + 1 if id else 3 for id in processor.encode(text)), 2]] for text in TEXTS]
    json.dump({"tokenizer": tokenizer, "expected": expected}, sys.stdout, ensure_ascii=False)


main(*sys.argv[1:])
