"""Training steps of Hugging Face transformers in PyTorch, on the CPU or a GPU, in a process of their own.

Reads one JSON request a line and answers each with one JSON line:
    {"make": NAME, "precision": "fp32"|"autocast"|"bf16", "compile": BOOL}   a model with its optimizer, by that name
    {"run": NAME, "steps": N, "seconds": S}                                  N steps and S seconds, whichever is more
    {"drop": NAME}
The first line is the setting: {"shape": {...}, "dropout": [residual, attention], "threads": N, "mlm_probability": P,
"device": "cpu"|"cuda"}. A step ends with its loss on the host.
"""

import gc
import json
import os
import sys
import time


def make_model(shape, dropout, transformers):
    residual, attention = dropout
    if shape["family"] == "bert":
        config = transformers.BertConfig(
            vocab_size=shape["vocabulary"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"], intermediate_size=shape["ffn"], max_position_embeddings=max(512, shape["T"]),
            hidden_dropout_prob=residual, attention_probs_dropout_prob=attention, attn_implementation="sdpa")
        return transformers.BertForMaskedLM(config)
    config = transformers.OPTConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["hidden"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], ffn_dim=shape["ffn"], word_embed_proj_dim=shape["hidden"],
        max_position_embeddings=max(512, shape["T"]), dropout=residual, attention_dropout=attention, use_cache=False,
        attn_implementation="sdpa")
    return transformers.OPTForCausalLM(config)


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    setting = json.loads(sys.stdin.readline())
    shape, device = setting["shape"], setting["device"]

    import torch
    import transformers

    torch.set_num_threads(setting["threads"])
    torch.manual_seed(1)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__,
                      "threads": torch.get_num_threads()}), file=answers)

    ids = torch.randint(1000, shape["vocabulary"], (shape["B"], shape["T"]))
    labels = ids.clone()
    if shape["family"] == "bert":
        chosen = torch.rand(ids.shape) < setting["mlm_probability"]
        labels[~chosen] = -100
        ids = ids.masked_fill(chosen, 103)
    ids, labels = ids.to(device), labels.to(device)

    def make(precision, compiled):
        model = make_model(shape, setting["dropout"], transformers).to(device)
        if precision == "bf16":
            model = model.to(torch.bfloat16)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        return (torch.compile(model, dynamic=False) if compiled else model), optimizer, precision

    def step(model, optimizer, precision):
        with torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    made = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                made[request["make"]] = make(request["precision"], request["compile"])
                answer = {}
            elif "drop" in request:
                del made[request["drop"]]
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()
                answer = {}
            else:
                times, loss = [], None
                while len(times) < request["steps"] or sum(times) < request["seconds"]:
                    begin = time.perf_counter()
                    loss = step(*made[request["run"]])
                    times.append(time.perf_counter() - begin)
                answer = {"seconds": times, "loss": loss}
        except Exception as error:  # told to who asked: one variant that does not work is not the end of a benchmark
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
