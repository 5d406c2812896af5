import numpy as np
import pytest
import torch

from maskocr_core.config import STEP
from maskocr_core.model.attention import attend
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.step_features import Contextual, Gradients, Pixels, RandomNetwork

HEIGHT = 32


def kinds():
    torch.manual_seed(0)
    return {
        "pixels": Pixels(16),
        "gradients": Gradients(16),
        "random": RandomNetwork(HEIGHT),
        "encoder": Contextual(Encoder(HEIGHT, 32, 3, 2, "convolutional", 0.1)),
    }


every_kind = pytest.mark.parametrize("kind", kinds())


@pytest.fixture
def lines():
    torch.manual_seed(1)
    valid = torch.arange(20)[None] < torch.tensor([20, 13, 7])[:, None]
    return torch.rand(3, 1, HEIGHT, 20 * STEP) * valid.repeat_interleave(STEP, 1)[:, None, None], valid


@every_kind
def test_a_step_has_the_same_features_whatever_its_line_is_batched_with(lines, kind):
    features, (ink, valid) = kinds()[kind].train(), lines
    together = features(ink, valid)
    assert together.shape[:2] == (3, 20) and together.dtype == torch.float32 and torch.isfinite(together).all()
    alone = features(ink[1:2, :, :, : 13 * STEP], valid[1:2, :13])
    # A gradient at the line's end sees the white beyond it, as padding is.
    assert torch.allclose(together[1, :12], alone[0, :12], atol=1e-5)
    assert torch.equal(features(ink, valid), together)


@every_kind
def test_features_are_no_weights_that_training_moves(kind):
    assert not any(weights.requires_grad for weights in kinds()[kind].parameters())


def test_the_random_network_is_always_the_same_and_moves_no_generator(lines):
    torch.manual_seed(5)
    first = RandomNetwork(HEIGHT)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))
    assert torch.equal(first(*lines), RandomNetwork(HEIGHT)(*lines))


def test_gradients_tell_strokes_apart_by_their_direction_and_not_by_their_ink():
    features = Gradients(16)
    upright, flat = torch.zeros(1, 1, HEIGHT, 3 * STEP), torch.zeros(1, 1, HEIGHT, 3 * STEP)
    upright[..., 10:13], flat[:, :, 10:13] = 1.0, 1.0
    valid = torch.ones(1, 3, dtype=torch.bool)
    said, faint, across = (features(ink, valid)[0, 1] for ink in (upright, 0.3 * upright, flat))
    assert torch.allclose(said, faint, atol=1e-5) and said.norm().item() == pytest.approx(1)
    assert said.view(-1, 9).sum(0).argmax() == 0 and across.view(-1, 9).sum(0).argmax() == 4
    assert float(said @ across) < 0.3


@pytest.mark.parametrize("window", [8, 16, 24, 64])
def test_gradients_are_those_of_a_slow_histogram(lines, window):
    ink, valid = lines
    image = np.pad(ink[0, 0].double().numpy(), 1)
    across, down = image[1:-1, 2:] - image[1:-1, :-2], image[2:, 1:-1] - image[:-2, 1:-1]
    histogram = np.zeros((HEIGHT // 8, 9))
    for y in range(HEIGHT):
        for x in range(5 * STEP + (STEP - window) // 2, 6 * STEP + (window - STEP) // 2):
            angle = np.arctan2(down[y, x], across[y, x]) % np.pi
            histogram[y // 8, min(8, int(angle / np.pi * 9))] += np.hypot(across[y, x], down[y, x])
    expected = histogram.ravel() / np.linalg.norm(histogram)
    assert Gradients(window)(ink, valid)[0, 5].numpy() == pytest.approx(expected, abs=1e-3)


def test_an_encoder_is_asked_after_two_thirds_of_its_blocks(lines):
    features = kinds()["encoder"]
    ink, valid = lines
    x = features.encoder.eval().placed(features.encoder.stem(ink))
    for block in features.encoder.blocks[:2]:
        x = block(x, attend(valid, flash=False), features.encoder.turn(torch.arange(x.shape[1])[None]))
    assert torch.allclose(features(ink, valid)[valid], x[valid], atol=1e-6)
