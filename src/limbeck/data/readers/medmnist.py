"""The data sets of MedMNIST by the names of their files: class names, and which of them are no flat sets of one label.

The names are those of the INFO of the medmnist package, version 3.0.2.
"""

from __future__ import annotations

import re

from limbeck.core.errors import UserError

ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right"),
    *("liver", "lung-left", "lung-right", "pancreas", "spleen"),
)
CLASSES = {
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
        *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
    ),
    "dermamnist": (
        *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions"),
        *("dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions"),
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        *("basophil", "eosinophil", "erythroblast"),
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        *("lymphocyte", "monocyte", "neutrophil", "platelet"),
    ),
    "tissuemnist": (
        *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells"),
        *("Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments"),
        "Thick Ascending Limb",
    ),
    "organamnist": ORGANS,
    "organcmnist": ORGANS,
    "organsmnist": ORGANS,
}
VOLUMES = ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d")
SET = re.compile(r"([a-z]+mnist(?:3d)?)(?:_(?:28|64|128|224))?")


def find_classes(name: str, where: str) -> tuple[str, ...] | None:
    """The class names of the set that a file of this name, without its suffix, holds; None for other names.

    Raises UserError for sets of MedMNIST with several labels an image, and for those of volumes.

    >>> find_classes("pneumoniamnist_224", "pneumoniamnist_224.npz"), find_classes("cats", "cats.npz")
    (('normal', 'pneumonia'), None)
    """
    match = SET.fullmatch(name.lower())
    if match is None:
        return None
    if match[1] == "chestmnist":
        raise UserError(
            f"{where}: ChestMNIST has 14 labels an image, and limbeck distils classes; choose another set of MedMNIST"
        )
    if match[1] in VOLUMES:
        raise UserError(
            f"{where}: {match[1]} holds volumes, and limbeck distils flat images; choose a 2-D set of MedMNIST"
        )
    return CLASSES.get(match[1])
