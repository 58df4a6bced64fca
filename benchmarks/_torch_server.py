"""fp32 torch models in one process, answering lines of standard input: the peer of serving_memory.py. FOLDERS... as arguments."""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

models = [(AutoModelForSequenceClassification.from_pretrained(f).eval(), AutoTokenizer.from_pretrained(f)) for f in sys.argv[1:]]
for line in sys.stdin:
    number, text = json.loads(line)
    model, tokenizer = models[number]
    with torch.inference_mode():
        logits = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64)).logits[0]
    print(json.dumps({"label": model.config.id2label[int(logits.argmax())]}), flush=True)
