import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from atp_models.demo.projector import untrained_projector


def projector(input_rms: float, output_rms: float) -> LlavaMultiModalProjector:
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=384), text_config=LlamaConfig(hidden_size=576)
    )
    module = LlavaMultiModalProjector(config)
    module.load_state_dict(
        untrained_projector(
            vision_width=384, text_width=576, input_rms=input_rms, output_rms=output_rms
        )
    )
    return module


@pytest.mark.parametrize(("input_rms", "output_rms"), [(1.0, 1.0), (0.5, 0.14), (20.0, 3.0)])
def test_output_has_the_wanted_size_when_input_has_the_stated_one(
    input_rms: float, output_rms: float
) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        out = projector(input_rms, output_rms)(torch.randn(1000, 384) * input_rms)
    assert float(out.square().mean().sqrt()) == pytest.approx(output_rms, rel=0.05)


def test_initialisation_is_the_same_twice_whatever_torchs_random_state() -> None:
    sizes = {"vision_width": 8, "text_width": 16, "input_rms": 1.0, "output_rms": 1.0}
    torch.manual_seed(1)
    first = untrained_projector(**sizes)
    torch.manual_seed(2)
    second = untrained_projector(**sizes)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["linear_1.weight"], first["linear_2.weight"][:, :8])
