"""The embeddings of `market-bench runtimes` by sentence-transformers, on the same processors: texts and tokens in a second.

    pip install sentence-transformers && python3 bench/embed.py WEIGHTS_DIR [--texts 512] [--rounds 5] [--batch 32]
"""

import argparse
import statistics
import time

from sentence_transformers import SentenceTransformer

parser = argparse.ArgumentParser()
parser.add_argument("weights")
parser.add_argument("--text", default="demo/text.txt")
parser.add_argument("--texts", type=int, default=512)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--batch", type=int, default=32)
args = parser.parse_args()

with open(args.text, encoding="utf-8") as file:
    paragraphs = [" ".join(paragraph.split()) for paragraph in file.read().split("\n\n") if paragraph.strip()]
texts = [paragraphs[n % len(paragraphs)] for n in range(args.texts)]
model = SentenceTransformer(args.weights, device="cpu")
tokens = sum(len(ids) for ids in model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"])
times = []
for _ in range(args.rounds + 1):
    began = time.perf_counter()
    model.encode(texts, batch_size=args.batch, show_progress_bar=False)
    times.append(time.perf_counter() - began)
middle = statistics.median(times[1:])
print(f"{args.texts} texts, {tokens} tokens: {middle:.3f} s, {args.texts / middle:.0f} texts/s, {tokens / middle:.0f} tokens/s")
