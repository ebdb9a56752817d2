"""Computes demo/reference_vectors.json: sentence embeddings of paragraphs of demo/text.txt with PyTorch.

Usage: reference_vectors.py MODEL_FOLDER      (needs `pip install torch transformers`)

It shares no code with the node, on purpose: the node's embeddings are tested against what it writes. The steps are those
that the model's modules.json names: the transformer, the mean over the tokens, the L2 norm.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModel, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
# Every third paragraph, so that short and long ones are among them.
STEP = 3
DIGITS = 7


def paragraphs(text):
    blocks = (" ".join(block.split()) for block in text.split("\n\n"))
    return [block for block in blocks if block]


def embed(folder, texts):
    max_length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    vectors = []
    for text in texts:
        # One text at a time: no padding, so nothing to get wrong about it.
        tokens = tokenizer(text, truncation=True, max_length=max_length, padding=False, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).tolist())
    return vectors


def main():
    folder = pathlib.Path(sys.argv[1]).resolve()
    texts = paragraphs((HERE / "text.txt").read_text(encoding="utf-8"))
    indexes = list(range(0, len(texts), STEP))
    vectors = embed(folder, [texts[index] for index in indexes])
    lines = [
        json.dumps({"paragraph": index, "embedding": [round(x, DIGITS) for x in vector]}, separators=(",", ":"))
        for index, vector in zip(indexes, vectors)
    ]
    (HERE / "reference_vectors.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
