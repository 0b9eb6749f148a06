#!/usr/bin/env bash
# What a person does who has never seen limbeck, from the README alone: install it, look at a folder of pictures, distil
# it, train a network of their own on the result, and take the result elsewhere through two exports.
#
#     tests/newcomer.sh [FOLDER]      FOLDER: where to work; it keeps its virtual environment for the next time
#
# `make newcomer` calls it. It takes some minutes, most of them to install torch. PYTHON names the Python to use.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=${1:-$(mktemp -d)}
mkdir -p "$WORK" && cd "$WORK"
unset PYTHONPATH
export LIMBECK_HOME=$WORK/home

say() { printf '\n=== %s (after %d s)\n' "$*" $SECONDS; }
run() { echo "\$ $*"; "$@"; }

say "install"
[ -x venv/bin/python ] || "${PYTHON:-python3}" -m venv venv
rm -rf checkout runs photos photos-npz photos-folders home
git clone -q "$ROOT" checkout
run venv/bin/pip install --quiet --constraint checkout/constraints.txt torch
run venv/bin/pip install --quiet --constraint checkout/constraints.txt ./checkout
PATH=$WORK/venv/bin:$PATH
run limbeck --version

say "a folder of PNGs of my own: three shapes, 120 pictures each"
python - <<'EOF'
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

generator = np.random.default_rng(0)
for name in ("circle", "cross", "square"):
    Path("photos", name).mkdir(parents=True)
    for number in range(120):
        picture = Image.new("RGB", (48, 36), tuple(int(value) for value in generator.integers(0, 60, 3)))
        draw = ImageDraw.Draw(picture)
        radius, colour = int(generator.integers(11, 15)), tuple(int(value) for value in generator.integers(180, 256, 3))
        x, y = (int(value) for value in generator.integers((21, 15), (28, 22)))
        box = (x - radius, y - radius, x + radius, y + radius)
        if name == "circle":
            draw.ellipse(box, fill=colour)
        elif name == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.line((box[0], y, box[2], y), fill=colour, width=6)
            draw.line((x, box[1], x, box[3]), fill=colour, width=6)
        picture.save(Path("photos", name, f"{number}.png"))
EOF
find photos -name '*.png' | wc -l

say "look at it, then distil it"
run limbeck info photos --resize 16
run limbeck distill photos --resize 16 --ipc 2 --out runs/photos \
    --model.width 16 --expert.epochs 20 --expert.lr 0.05 --expert.batch-size 32 --num-experts 4 --iterations 100 --eval.protocol quick
run limbeck report runs/photos
run limbeck evaluate runs/photos --num-networks 2 --which chosen

say "a network of my own, trained on six pictures"
python - <<'EOF'
import torch
from torch import nn

import limbeck

torch.manual_seed(0)
small = limbeck.load("runs/photos")
net = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2),
    nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2),
    nn.Flatten(), nn.Linear(32 * 4 * 4, 3),
)
small.train(net)
test = limbeck.load_data("photos", resize=16).test
accuracy = small.accuracy(net, test.images, test.labels)
print(f"my network: {accuracy:.1%} of {len(test)} test images; chance is 33 %")
assert accuracy > 0.4, accuracy
EOF

say "elsewhere: the code of the cards of two exports, without limbeck"
run limbeck export runs/photos --to npz --out photos-npz
run limbeck export runs/photos --to imagefolder --out photos-folders --num-networks 1
cat > card.py <<'EOF'
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.modules["limbeck"] = None  # a card that needs it fails
pictures, labels = [], []
for label, name in enumerate(("circle", "cross", "square")):
    for file in sorted(Path("../photos", name).glob("*.png")):
        pictures.append(np.asarray(Image.open(file).resize((16, 16), Image.Resampling.BILINEAR)))
        labels.append(label)
code = re.search(r"^```python\n(.*?)^```", Path("README.md").read_text("utf-8"), re.M | re.S)[1]
Path("card_code.py").write_text(code)
predict = runpy.run_path("card_code.py")["predict"]
pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
accuracy = (np.asarray(predict(pixels)) == np.array(labels)).mean()
print(f"{Path().resolve().name}: {accuracy:.1%} of all {len(labels)} pictures; chance is 33 %")
assert accuracy > 0.4, accuracy
EOF
(cd photos-npz && python ../card.py)
(cd photos-folders && python ../card.py)

say "done"
