"""torch eager with torchvision's transforms, answering base64 photos on standard input: the peer of image_serving.py. WEIGHTS SIZE."""

from __future__ import annotations

import base64
import io
import json
import sys

import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18

weights, size = sys.argv[1], int(sys.argv[2])
model = resnet18(num_classes=2).eval()
model.load_state_dict(torch.load(weights, weights_only=True))
prepare = transforms.Compose(
    [
        transforms.Resize((size, size)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
for line in sys.stdin:
    photo = Image.open(io.BytesIO(base64.b64decode(line))).convert("RGB")
    with torch.inference_mode():
        probabilities = model(prepare(photo)[None]).softmax(-1)[0]
    print(json.dumps(probabilities.tolist()), flush=True)
