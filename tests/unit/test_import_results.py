"""Import of distilled sets of DC, DSA, DM, DataDAM and IDC, against their own way from file to network input."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors_files import refuse, save, save_idc, save_results, save_snapshots, synthetic_pair
from torch import Tensor, nn

from limbeck.cli.info import describe
from limbeck.data import ImageData, Split, load_data
from limbeck.data.assemble import assemble
from limbeck.data.images import RawData
from limbeck.evaluation.counts import budget
from limbeck.evaluation.run import evaluate
from limbeck.interop import describe_pt, import_set
from limbeck.interop.set_files import VARIANTS
from limbeck.networks.registry import ModelConfig, flat_model
from limbeck.synthetic.distilled import DistilledSet, load


@pytest.fixture(scope="module")
def colour(digits: ImageData) -> ImageData:
    """Digits in three channels."""

    def expand(split: Split) -> Split:
        return Split(split.images.expand(-1, 3, -1, -1).contiguous(), split.labels)

    return replace(digits, train=expand(digits.train), validation=expand(digits.validation), test=expand(digits.test))


def notes_of(distilled: DistilledSet) -> str:
    notes = distilled.provenance["imported"]["notes"]
    assert all(0 < len(note) <= 300 and "\n" not in note for note in notes)
    return "\n".join(notes)


def test_the_first_experiment_of_dc_is_read(tmp_path: Path, colour: ImageData) -> None:
    path = tmp_path / "res_DC_CIFAR10_ConvNet_2ipc.pt"
    data = save_results(path, 3, ipc=2, shape=(3, 8, 8))
    distilled = import_set(path, colour)
    assert torch.equal(distilled.images, data[0][0])
    assert torch.equal(distilled.labels, torch.arange(10).repeat_interleave(2))
    assert distilled.lr == 0.01
    assert distilled.provenance["which"] == "0"
    # DC's evaluation of CIFAR-10: 300 epochs in batches of 256, without augmentation.
    assert distilled.recipe["epochs"] == 300
    assert distilled.recipe["batch_size"] == 256
    assert distilled.recipe["augment"] == "none"
    assert (distilled.recipe["model"]["depth"], distilled.recipe["model"]["width"]) == (3, 128)
    notes = notes_of(distilled)
    assert "holds 3 experiments: number 0 was taken, from 0" in notes
    assert "step size of its own: 0.01" in notes
    assert "constants 'cifar'" in notes
    assert "was assumed" not in notes  # the name of the file says which network


def test_images_go_to_pixels_by_the_constants_of_dc(tmp_path: Path, colour: ImageData) -> None:
    path = tmp_path / "res_DM_CIFAR100_ConvNet_1ipc.pt"
    ((images, _),) = save_results(path, 1, shape=(3, 8, 8))
    distilled = import_set(path, colour)
    mean, std = [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]  # of DC's get_dataset, as in its `vis` pictures
    pixels = torch.stack([images[:, channel] * std[channel] + mean[channel] for channel in range(3)], 1)
    torch.testing.assert_close(distilled.pictures(), pixels)
    test = colour.test.images[:5]
    normalised = torch.stack([(test[:, c].float() / 255 - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(distilled.preprocess.apply(test), normalised)


@pytest.mark.parametrize("experiment", [0, 1, 4])
def test_any_experiment_with_its_accuracies(tmp_path: Path, digits: ImageData, experiment: int) -> None:
    path = tmp_path / "res_DSA_MNIST_ConvNet_1ipc.pt"
    data = save_results(path, 5, ("ConvNet", "MLP"))
    distilled = import_set(path, digits, experiment=experiment)
    assert torch.equal(distilled.images, data[experiment][0])
    assert distilled.provenance["which"] == str(experiment)
    own = np.random.default_rng(experiment).integers(2000, 3000, 20) / 100
    assert f"measured {fmean(own):.1f} +- {stdev(own):.1f} % (n 20) for it on ConvNet" in notes_of(distilled)
    assert distilled.recipe["epochs"] == 1000
    assert distilled.recipe["augment"] == "color_crop_cutout_scale_rotate"  # as DSA's readme says of digits
    elsewhere = import_set(path, replace(digits, name="folder"))
    assert elsewhere.recipe["augment"] == "color_crop_cutout_scale_rotate"  # the file says MNIST, the folder nothing
    assert distilled.preprocess.mean.tolist() == pytest.approx([0.1307])
    refuse("counted from 0; --experiment 5", lambda: import_set(path, digits, experiment=5))
    refuse("leave out --factor", lambda: import_set(path, digits, factor=2))


@pytest.mark.parametrize("name", ["res_DataDAM_FashionMNIST_ConvNet_1ipc_.pt", "renamed.pt"])
def test_the_last_snapshot_of_datadam_is_read(tmp_path: Path, digits: ImageData, name: str) -> None:
    """Its file has the set at every evaluation, from the random real images at the start on."""
    data = save_snapshots(tmp_path / name, 11)
    distilled = import_set(tmp_path / name, digits)
    assert torch.equal(distilled.images, data[10][0])
    assert "11 snapshots of one run, the first of them its start: number 10 was taken" in notes_of(distilled)
    assert torch.equal(import_set(tmp_path / name, digits, experiment=0).images, data[0][0])
    assert describe_pt(tmp_path / name)["kind"] == "snapshots of one run of DataDAM"
    if name != "renamed.pt":
        assert (distilled.recipe["epochs"], distilled.recipe["batch_size"]) == (1800, 64)
        assert distilled.preprocess.std is not None
        assert distilled.preprocess.std.tolist() == pytest.approx([0.3530])


def test_snapshots_without_accuracies_are_told_by_the_name(tmp_path: Path, digits: ImageData) -> None:
    data = [synthetic_pair(seed) for seed in range(3)]
    for name, number in (("res_DataDAM_MNIST_ConvNet_1ipc_.pt", 2), ("res_DM_MNIST_ConvNet_1ipc.pt", 0)):
        path = save({"data": data}, tmp_path / name)
        assert torch.equal(import_set(path, digits).images, data[number][0])


def test_the_single_set_of_datadam(tmp_path: Path, colour: ImageData) -> None:
    images, labels = synthetic_pair(5, 2, (3, 8, 8))
    path = save({"data": [images, labels]}, tmp_path / "syn_data_cifar10_ipc_2.pt")
    distilled = import_set(tmp_path, colour)  # the only set of its folder
    assert torch.equal(distilled.images, images)
    assert torch.equal(distilled.labels, labels)
    assert distilled.provenance["which"] is None
    assert distilled.preprocess.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert "its network is not in the files: a ConvNet of depth 2 and width 128 was assumed" in notes_of(distilled)
    zca = import_set(path, colour, preprocess="zca", lr=0.05, model=ModelConfig(width=8))
    assert zca.lr == 0.05
    assert zca.preprocess.kind == "zca"
    assert "ZCA matrix was not in the files" in notes_of(zca)
    assert "given by hand" in notes_of(zca)
    assert "was assumed" not in notes_of(zca)


def test_labels_may_be_whole_numbers_in_floating_point(tmp_path: Path, digits: ImageData) -> None:
    images, labels = synthetic_pair(5)
    path = save({"data": [images, labels.float()]}, tmp_path / "set.pt")
    distilled = import_set(path, digits)
    assert distilled.labels.dtype == torch.int64
    assert torch.equal(distilled.labels, labels)
    for wrong in (labels + 0.5, labels * float("inf"), labels / 0):
        save({"data": [images, wrong]}, path)
        refuse("soft labels of shape .10,", lambda: import_set(path, digits))
    save({"data": [images, labels.double() * 1e300]}, path)
    refuse("classes 0 to 10, of shape .10,.; the data has 10", lambda: import_set(path, digits))


def test_a_renamed_file_of_results_says_what_was_assumed(tmp_path: Path, digits: ImageData) -> None:
    save_results(tmp_path / "from-a-friend.pt", 2)
    distilled = import_set(tmp_path / "from-a-friend.pt", digits)
    notes = notes_of(distilled)
    assert "constants were not in the files: fitted anew" in notes
    assert "ConvNet of depth 2 and width 128 was assumed" in notes
    assert distilled.recipe["epochs"] == 1000


def test_dc_augments_only_mnist(tmp_path: Path, digits: ImageData) -> None:
    path = tmp_path / "res_DC_MNIST_ConvNetD4_1ipc.pt"
    save_results(path, 1)
    recipe = import_set(path, digits, model=ModelConfig(depth=1)).recipe
    assert (recipe["augment"], recipe["epochs"]) == ("crop_scale_rotate", 1000)
    assert import_set(path, digits, augment="flip").recipe["augment"] == "flip"


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("ConvNetD2", {"name": "convnet", "depth": 2, "width": 128}),
        ("ConvNetW32", {"name": "convnet", "depth": 3, "width": 32}),
        ("MLP", {"name": "mlp", "width": 128}),
        ("ConvNetASwishBN", {"name": "convnet", "depth": 3, "norm": "batch", "activation": "swish"}),
        ("ConvNetNN", {"norm": "none", "activation": "relu", "pooling": "avg"}),
        ("ConvNetGN", {"norm": "group"}),
        ("ConvNetAL", {"activation": "leaky-relu", "norm": "instance"}),
        ("ConvNetMP", {"pooling": "max", "width": 128}),
    ],
)
def test_the_network_in_the_name(tmp_path: Path, digits: ImageData, network: str, expected: dict[str, Any]) -> None:
    save_results(tmp_path / f"res_DSA_MNIST_{network}_1ipc.pt", 1)
    distilled = import_set(tmp_path, digits)
    assert expected.items() <= distilled.recipe["model"].items()
    assert "was assumed" not in notes_of(distilled)


def test_every_variant_is_a_network_of_limbeck(digits: ImageData) -> None:
    for options in VARIANTS.values():
        assert flat_model(ModelConfig(depth=1, width=16, **options), digits.shape, 10).layout.count > 0


def test_a_network_that_limbeck_has_not_is_named(tmp_path: Path, digits: ImageData) -> None:
    save_results(tmp_path / "res_DM_MNIST_ResNet18BN_AP_1ipc.pt", 1)
    assert "limbeck has no ResNet18BN_AP: a ConvNet" in notes_of(import_set(tmp_path, digits))


def decode_as_idc(images: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """IDC's uniform multi-formation, class by class: pad with 0.5, cut tiles row by row, enlarge by nn.Upsample."""
    resize = nn.Upsample(size=images.shape[-1], mode="bilinear")
    height = images.shape[-1]
    if height % factor:
        pad = factor - height % factor
        images = F.pad(images, (0, pad, 0, pad), value=0.5)
    crop = ceil(height / factor)
    tiles, targets = [], []
    for label in range(10):
        of_class = images[labels == label]
        cut = [of_class[:, :, i * crop :, j * crop :][..., :crop, :crop] for i in range(factor) for j in range(factor)]
        tiles.append(resize(torch.cat(cut)))
        targets.append(torch.full((len(tiles[-1]),), label))
    return torch.cat(tiles), torch.cat(targets)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_idc_is_decoded_as_its_code_does(tmp_path: Path, colour: ImageData, factor: int) -> None:
    folder = tmp_path / "cifar100" / f"conv2in_w0.5_grad_mse_nd2000_cut_niter2000_factor{factor}_lr0.005_mix_ipc2"
    pixels, labels = save_idc(folder / "data.pt", 2, (3, 8, 8))
    distilled = import_set(folder, colour)
    images, targets = decode_as_idc(pixels, labels, factor)
    # IDC normalises both CIFARs by CIFAR-10's constants.
    images = (images - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor(
        [0.2023, 0.1994, 0.2010]
    ).view(3, 1, 1)
    order = distilled.labels.argsort(stable=True)  # ours come tile by tile, theirs class by class
    assert torch.equal(distilled.labels[order], targets)
    torch.testing.assert_close(distilled.images[order], images)
    assert len(distilled.images) == 20 * factor**2
    assert (distilled.lr, distilled.recipe["batch_size"], distilled.recipe["epochs"]) == (0.01, 64, 1000)
    assert (distilled.recipe["model"]["depth"], distilled.recipe["model"]["width"]) == (2, 64)
    assert "CutMix" in notes_of(distilled)
    assert (f"{factor} x {factor} tiles" in notes_of(distilled)) == (factor > 1)


def test_idc_at_several_scales(tmp_path: Path, digits: ImageData) -> None:
    pixels, labels = save_idc(tmp_path / "x_factor2_multi_lr0.005" / "data_best.pt")
    distilled = import_set(tmp_path / "x_factor2_multi_lr0.005", digits)
    parts = [decode_as_idc(pixels, labels, factor) for factor in (1, 2)]
    expected = torch.cat([images for images, _ in parts])
    expected = expected[torch.cat([targets for _, targets in parts]).argsort(stable=True)]
    torch.testing.assert_close(distilled.pictures()[distilled.labels.argsort(stable=True)], expected)
    assert distilled.provenance["which"] == "best"


@pytest.mark.parametrize("preprocess", ["normalise", "zca"])
def test_the_budget_of_idc_is_its_mosaics(tmp_path: Path, colour: ImageData, preprocess: str) -> None:
    path = tmp_path / "x_factor2_multi_ipc2" / "data.pt"
    _, labels = save_idc(path, 2, (3, 8, 8))
    distilled = import_set(path, colour, preprocess=preprocess)
    stored, stored_labels = distilled.stored_pair
    assert (len(distilled.images), len(stored), budget(distilled)) == (20 * 5, 20, (2, "none"))
    assert torch.equal(stored_labels, labels)
    distilled.save(tmp_path / "set.safetensors")
    loaded = load(tmp_path / "set.safetensors")
    assert torch.equal(loaded.images, distilled.images)
    assert torch.equal(loaded.stored_pair[0], stored)


def test_idc_needs_a_factor_and_pixels(tmp_path: Path, digits: ImageData) -> None:
    pixels, labels = save_idc(tmp_path / "data_best.pt")
    refuse("--factor 1 for IDC-I, 2 for IDC", lambda: import_set(tmp_path, digits))
    distilled = import_set(tmp_path, digits, factor=1)
    torch.testing.assert_close(distilled.pictures(), pixels)
    assert "by 'normalise', fitted on our train part" in notes_of(distilled)
    refuse("leave out --experiment", lambda: import_set(tmp_path, digits, factor=1, experiment=0))
    refuse("cannot be cut by a factor of 0", lambda: import_set(tmp_path, digits, factor=0))
    save([(pixels - 0.1307) / 0.3081 * 2, labels], tmp_path / "data_best.pt")
    refuse("where IDC has pixels in 0..1", lambda: import_set(tmp_path, digits, factor=1))


def test_idc_is_recognised_by_its_content(tmp_path: Path, digits: ImageData) -> None:
    save_idc(tmp_path / "anything.pt")
    assert import_set(tmp_path / "anything.pt", digits, factor=2).recipe["batch_size"] == 64
    assert describe_pt(tmp_path / "anything.pt")["kind"] == "distilled set of IDC, in pixels"
    save_results(tmp_path / "data.pt", 1)
    assert describe_pt(tmp_path / "data.pt")["kind"] == "distilled sets of DC, DSA or DM, one an experiment"
    assert import_set(tmp_path / "data.pt", digits).recipe["batch_size"] == 256


def test_an_imported_set_is_evaluated_and_says_what_was_assumed(tmp_path: Path, digits: ImageData) -> None:
    save_results(tmp_path / "res_DM_MNIST_ConvNetW32_1ipc.pt", 2)
    distilled = import_set(tmp_path, digits)
    distilled.save(tmp_path / "set.safetensors")
    assert torch.equal(load(tmp_path / "set.safetensors").images, distilled.images)
    about = describe(str(tmp_path / "set.safetensors"))
    assert about["notes"] == distilled.provenance["imported"]["notes"]
    row = evaluate(tmp_path / "set.safetensors", data=digits, num_networks=1, epochs=1, model=ModelConfig(width=4))[0]
    assert row.lr == 0.01


def test_what_info_says_of_results(tmp_path: Path) -> None:
    path = tmp_path / "res_DSA_SVHN_ConvNet_1ipc.pt"
    data = save_results(path, 2, shape=(3, 8, 8))
    about = describe(str(path))
    assert about["sets"] == 2
    assert about["images"] == [10, 3, 8, 8]
    assert about["labels"] == [0, 9]
    assert about["range"] == [data[0][0].min().item(), data[0][0].max().item()]
    assert about["named"] == {"method": "DSA", "dataset": "svhn", "network": "ConvNet"}
    assert about["accuracies"]["ConvNet"]["n"] == 40
    assert "order of the data's classes" in about["class order"]
    assert about["next"] == "limbeck import-set"
    save(torch.zeros(10, 3, 8, 8), tmp_path / "images_best.pt")
    assert "order of the data's classes" in describe(str(tmp_path / "images_best.pt"))["class order"]


def test_which_label_was_taken_as_which_class(tmp_path: Path, digits: ImageData) -> None:
    path = tmp_path / "res_DM_MNIST_ConvNetD2_1ipc.pt"
    save_results(path, 1)
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    order = "labels 0 to 9 were taken as airplane, automobile, bird, cat, deer and 5 more, in the order of the data's"
    assert order in notes_of(import_set(path, replace(digits, classes=names)))
    assert "the classes of these names, which are numbers" in notes_of(import_set(path, digits))
    as_text = ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8")  # folders 0..8 and 10, sorted as text
    notes = notes_of(import_set(path, replace(digits, classes=as_text)))
    assert "their names are numbers, and label 2 is the class named 10" in notes


@pytest.mark.parametrize("soft", [False, True])
def test_labels_follow_the_names_of_a_known_data_set(tmp_path: Path, digits: ImageData, soft: bool) -> None:
    """Folders of Fashion-MNIST are sorted by the alphabet, and its labels are not."""
    fashion = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"]
    folders = tuple(sorted(name.replace("/", "_").replace("-", " ").lower() for name in fashion))
    assert folders[0] == "ankle boot"
    images, labels = synthetic_pair(0)
    weights = F.one_hot(labels, 10) * 0.91 + 0.009
    path = save({"data": [[images, weights if soft else labels]]}, tmp_path / "res_DM_FashionMNIST_ConvNetD2_1ipc.pt")
    distilled = import_set(path, replace(digits, classes=folders))
    assert [distilled.classes[label] for label in distilled.hard_labels()] == [
        name.replace("/", "_").replace("-", " ").lower() for name in fashion
    ]
    assert torch.equal(distilled.images, images)
    assert "they were renumbered to the order of the data's classes" in notes_of(distilled)
    assert "were taken as" not in notes_of(distilled)
    in_order = import_set(path, replace(digits, classes=tuple(fashion)))
    assert torch.equal(in_order.labels, weights if soft else labels)
    assert "renumbered" not in notes_of(in_order)
    others = import_set(path, replace(digits, classes=("zebra", *folders[1:])))
    assert torch.equal(others.hard_labels(), labels)
    assert "labels 0 to 9 were taken as zebra" in notes_of(others)


def test_classes_without_an_image_are_named(tmp_path: Path, digits: ImageData) -> None:
    images, labels = synthetic_pair(0)
    save({"data": [images[:7], labels[:7]]}, tmp_path / "set.pt")
    assert "no image of 7, 8, 9" in notes_of(import_set(tmp_path / "set.pt", digits))


def test_data_whose_labels_were_renumbered_say_so(tmp_path: Path, digits: ImageData) -> None:
    images, labels = digits.train.images[:, 0].numpy(), digits.train.labels.numpy()
    raw = RawData("gaps", {"train": images}, {"train": labels * 3})
    gaps = assemble(raw, validation=0.1, seed=0, resize=None)
    save({"data": synthetic_pair(0)}, tmp_path / "set.pt")
    notes = notes_of(import_set(tmp_path / "set.pt", gaps))
    assert "label 1 is the class named 3" in notes
    assert "labels were renumbered 0..9" in notes
    unused = raw._replace(labels={"train": labels + 1}, names=("spare", *"abcdefghij"))
    notes = notes_of(import_set(tmp_path / "set.pt", assemble(unused, validation=0.1, seed=0, resize=None)))
    assert "classes without images were left out: spare" in notes


def test_results_that_do_not_fit_are_refused(tmp_path: Path, digits: ImageData, colour: ImageData) -> None:
    path = tmp_path / "res_DM_MNIST_ConvNet_1ipc.pt"
    images, labels = synthetic_pair(0)

    def refuse_content(message: str, content: Any) -> None:
        save(content, path)
        refuse(message, lambda: import_set(path, digits))

    refuse_content("neither .images, labels. nor a list", {"data": []})
    refuse_content("neither .images, labels. nor a list", {"data": [[images]]})
    refuse_content("neither .images, labels. nor a list", {"data": {"images": images}})
    refuse_content("not one tensor", {"images": images})
    refuse_content("not images", {"data": [[images[0], labels]]})
    refuse_content("not images", {"data": [[images.long(), labels]]})
    refuse_content("of shape .1, 8, 4.", {"data": [[images[..., :4], labels]]})
    refuse_content("for 10 images", {"data": [[images, labels[:9]]]})
    refuse_content("classes 1 to 10", {"data": [[images, labels + 1]]})
    refuse_content("not numbers", {"data": [[images, labels > 3]]})
    refuse_content("set 0 holds NaN", {"data": [[images * float("nan"), labels], [images, labels]]})
    save_results(path, 1)
    refuse("another data set", lambda: import_set(path, colour))
    refuse("--lr must be above 0", lambda: import_set(path, digits, lr=float("nan")))
    save_results(tmp_path / "res_DC_MNIST_ConvNet_1ipc.pt", 1)
    refuse("2 files of results", lambda: import_set(tmp_path, digits))


def test_other_data_is_loaded_by_name(tmp_path: Path) -> None:
    save_results(tmp_path / "res_DM_MNIST_ConvNetD2_1ipc.pt", 1)
    assert import_set(tmp_path, "digits").provenance["data"]["source"] == "digits"
    assert load_data("digits").classes == import_set(tmp_path, "digits").classes
