"""Generation: the mixture at each step, the same in a batch as alone, with beams and padding."""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from knnlm.errors import InputError
from knnlm.generation import KNNLogitsProcessor, generate
from knnlm.mixture import Setting, interpolate, knn_distribution

CHOICE = {"k": 12, "lam": 0.6, "temperature": 20.0}
PROMPTS = ["the capital of", "copper", "elected in 1990 the president was a"]


@pytest.fixture(scope="module")
def index(flat):
    return flat["l2_squared"]


def greedy_by_hand(lm, index, prompt: str, steps: int) -> str:
    """Read the whole text anew for each token, and take the mixture's most probable one."""
    tokens = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = []
    for _ in range(steps):
        with torch.no_grad():
            output = lm.model(torch.tensor([tokens + new]), output_hidden_states=True)
            block = lm.model.transformer.h[-1]
            x = output.hidden_states[-2]
            x = x + block.attn(block.ln_1(x))[0]
            key = block.ln_2(x)[0, -1:].numpy()
            log_lm = torch.log_softmax(output.logits[0, -1], -1).numpy()
        found = index.search(key, CHOICE["k"])
        values = index.datastore.values_of(found.ids)
        p = knn_distribution(found.distances, values, lm.vocab_size, CHOICE["temperature"])
        with np.errstate(divide="ignore"):
            new.append(int(interpolate(log_lm, np.log(p[0]), CHOICE["lam"]).argmax()))
        if new[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.tokenizer.decode(new, skip_special_tokens=True)


def test_greedy_generation_is_the_mixture_taken_token_by_token(lm, index):
    for prompt in PROMPTS:
        expected = greedy_by_hand(lm, index, prompt, 8)
        assert generate(lm, index, [prompt], max_new_tokens=8, **CHOICE) == [expected]


def test_a_setting_stands_for_the_three_numbers(lm, index):
    setting = Setting(**CHOICE)
    by_number = generate(lm, index, PROMPTS, max_new_tokens=8, **CHOICE)
    assert generate(lm, index, PROMPTS, setting, max_new_tokens=8) == by_number
    memory = KNNLogitsProcessor(lm, index, setting)
    assert {name: getattr(memory, name) for name in CHOICE} == CHOICE


def test_a_batch_with_left_padding_gives_what_each_prompt_gives_alone(lm, index):
    together = generate(lm, index, PROMPTS, max_new_tokens=8, **CHOICE)
    alone = [generate(lm, index, [p], max_new_tokens=8, **CHOICE)[0] for p in PROMPTS]
    assert together == alone


def test_at_lam_0_the_model_writes_what_it_writes_without_memory(lm, index):
    tokens = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
    plain = lm.model.generate(tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
    written = generate(lm, index, [PROMPTS[0]], max_new_tokens=8, **{**CHOICE, "lam": 0})
    assert written == [lm.tokenizer.decode(plain, skip_special_tokens=True)]


def test_scores_are_log_probabilities_of_a_distribution_for_every_beam(lm, index):
    sums = []

    class Watch(KNNLogitsProcessor):
        def __call__(self, input_ids, scores):
            mixed = super().__call__(input_ids, scores)
            sums.append(mixed.exp().sum(-1))
            return mixed

    tokens = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
    with Watch(lm, index, **CHOICE) as memory:
        lm.model.generate(
            tokens,
            max_new_tokens=5,
            num_beams=3,
            do_sample=False,
            logits_processor=LogitsProcessorList([memory]),
        )
    assert len(sums) == 5
    assert all(len(s) == 3 for s in sums)
    assert torch.allclose(torch.cat(sums), torch.ones(15), atol=1e-4)


def test_beams_of_a_batch_are_those_of_each_prompt(lm, index):
    how = {"max_new_tokens": 6, **CHOICE}
    together = generate(lm, index, PROMPTS, beams=4, **how)
    assert together == [generate(lm, index, [p], beams=4, **how)[0] for p in PROMPTS]
    assert together != generate(lm, index, PROMPTS, **how)
    assert generate(lm, index, PROMPTS, beams=1, **how) == generate(lm, index, PROMPTS, **how)


def test_sampling_repeats_with_the_seed_and_leaves_no_hook(lm, index):
    hooks = sum(len(m._forward_hooks) for m in lm.model.modules())
    drawn = [
        generate(lm, index, PROMPTS[:1], max_new_tokens=12, sample=True, seed=s, **CHOICE)
        for s in (1, 1, 2, 3, 4)
    ]
    assert drawn[0] == drawn[1]
    assert len({d[0] for d in drawn}) > 1
    assert sum(len(m._forward_hooks) for m in lm.model.modules()) == hooks


def test_what_does_not_fit_the_context_and_empty_prompts_are_refused(lm, index):
    with pytest.raises(InputError, match="32"):
        generate(lm, index, ["the"], max_new_tokens=32, **CHOICE)
    with pytest.raises(InputError, match="empty"):
        generate(lm, index, ["the", ""], **CHOICE)
