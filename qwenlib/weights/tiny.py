"""A tiny Qwen1.5 checkpoint, laid out as Hugging Face ships the real ones.

It is made with transformers' own ``Qwen2ForCausalLM`` and pre-trained a little on plain sentences, so that adapters
have something to stand on. It has never seen a ChatML conversation: it cannot answer.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

from qwenlib.profile import Model
from qwenlib.progress import Progress

CONTROL_TOKENS = 3
SHARD = "500KB"


def make_tiny(
    folder: Union[str, Path],
    texts: Sequence[str],
    model: Model,
    *,
    seed: int = 0,
    steps: int = 150,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> Dict[str, Any]:
    """Make ``folder``: sharded safetensors with index, config.json, vocab.json, merges.txt, tokenizer_config.json.

    The tokenizer is trained on ``texts``; the network is pre-trained for ``steps`` steps of ``batch_size`` texts (next
    token, no chat). Same arguments, same machine: same weights.

    Returns:
        ``{"parameters", "first_loss", "last_loss", "steps", "texts"}``; losses in nats per token, of one batch each.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from qwenlib.data.tokenizer import load_tokenizer, train_tokenizer

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    build = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=str(folder.parent)))
    try:
        train_tokenizer(list(texts), model.vocab_size, build)
        tokenizer = load_tokenizer(build / "vocab.json", build / "merges.txt")
        end_of_text = tokenizer.token_to_id("<|endoftext|>")
        torch.manual_seed(seed)
        network = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=model.vocab_size,
                hidden_size=model.hidden_size,
                intermediate_size=model.intermediate_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_heads,
                num_key_value_heads=model.n_kv_heads or model.num_heads,
                max_position_embeddings=model.max_position_embedding,
                rms_norm_eps=model.rms_norm_eps,
                rope_theta=model.theta,
                bos_token_id=end_of_text,
                eos_token_id=end_of_text,
                tie_word_embeddings=False,
            )
        )
        ids = [tokenizer.encode(text, add_special_tokens=False).ids + [end_of_text] for text in texts]
        losses = _pretrain(network, ids, end_of_text, seed, steps, batch_size, learning_rate)
        network.save_pretrained(str(build), safe_serialization=True, max_shard_size=SHARD)
        build.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        build.rename(folder)
    except BaseException:
        shutil.rmtree(build, ignore_errors=True)
        raise
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "steps": steps,
        "texts": len(ids),
    }


def _pretrain(
    network: Any, ids: List[List[int]], pad: int, seed: int, steps: int, batch_size: int, learning_rate: float
) -> List[float]:
    """AdamW with a linear decay; the embeddings of tokens that never occur stay as they were drawn."""
    import torch

    order = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / max(steps, 1))
    losses: List[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing, and threads that spin slow their neighbours down
    network.train()
    with Progress("pre-train the tiny base", steps, "steps") as bar:
        for _ in range(steps):
            part = order.sample(ids, min(batch_size, len(ids)))
            length = max(len(row) for row in part)
            rows = torch.tensor([row + [pad] * (length - len(row)) for row in part])
            labels = torch.tensor([row + [-100] * (length - len(row)) for row in part])
            loss = network(input_ids=rows, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.advance(note=f"loss {losses[-1]:.2f}")
    network.eval()
    torch.set_num_threads(threads)
    return losses
