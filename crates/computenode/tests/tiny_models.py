"""Prints what transformers computes with the tiny models of tests/embed.rs: the numbers that stand there.

    pip install torch transformers && python3 tiny_models.py
"""

import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel
from transformers import MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

COMMON = dict(vocab_size=13, max_position_embeddings=64, layer_norm_eps=1e-5, type_vocab_size=2)
SIZES = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
MODELS = {
    "bert": BertModel(BertConfig(**COMMON, **SIZES), add_pooling_layer=False),
    "roberta": RobertaModel(RobertaConfig(**COMMON, **SIZES, pad_token_id=1), add_pooling_layer=False),
    "mpnet": MPNetModel(MPNetConfig(**COMMON, **SIZES), add_pooling_layer=False),
    "distilbert": DistilBertModel(
        DistilBertConfig(vocab_size=13, max_position_embeddings=64, dim=8, n_layers=2, n_heads=2, hidden_dim=16)
    ),
}
# "[CLS] w1 w2 ... w9 w1 w2 ... [SEP]": long enough for every kind of distance.
IDS = [2, *[4 + n % 9 for n in range(30)], 3]

for name, model in MODELS.items():
    model.eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            numbers = torch.arange(tensor.numel(), dtype=torch.float32) * 0.7 + len(key)
            tensor.copy_((torch.sin(numbers) * 0.5).reshape(tensor.shape))
        hidden = model(input_ids=torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS))).last_hidden_state[0]
    for pooling, pooled in [("mean", hidden.mean(0)), ("max", hidden.max(0).values)]:
        vector = torch.nn.functional.normalize(pooled, dim=0)
        print(f'("{name}", "{pooling}", [{", ".join(f"{x:.6f}" for x in vector.tolist())}]),')
