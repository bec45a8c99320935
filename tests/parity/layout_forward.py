"""EAGLE-3's forward pass as each project states it, in float64 and row by row: published names, published config.

Written from the layouts' descriptions and not from our code: no batch, no cache, nothing shared with what is tested.
"""

import numpy as np


def stated(layout, config):
    """What a project's code makes of its config: its decoder's keys on top, and what it does not go by replaced."""
    config = {"rope_theta": 10_000.0} | config | config.get("transformer_layer_config", {})
    config |= {"rope_theta": config.get("rope_parameters", config)["rope_theta"]}  # its newer place; no scaling there
    return config | ({"rope_theta": 10_000.0} if layout == "angelslim" else {})


def rms(x, weight, eps):
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def turned(x, position, config):
    """One head's vector, rotated to its position (Llama's half-split layout)."""
    half = len(x) // 2
    frequency = config["rope_theta"] ** (-np.arange(half) / half)
    scaling, sharper = config.get("rope_scaling"), 1.0
    if scaling and scaling["rope_type"] == "yarn":
        frequency, sharper = yarn(frequency, config["rope_theta"], scaling)
    elif scaling:
        wavelength, long = 2 * np.pi / frequency, scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        for i in range(half):
            if wavelength[i] > long / low:
                frequency[i] /= scaling["factor"]
            elif wavelength[i] > long / high:
                smooth = (long / wavelength[i] - low) / (high - low)
                frequency[i] = (1 - smooth) * frequency[i] / scaling["factor"] + smooth * frequency[i]
    angle = position * frequency
    a, b = x[:half], x[half:]
    return sharper * np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])


def yarn(frequency, theta, scaling):
    """Frequencies by YaRN's published rule (Peng et al. 2023), and the square root of its temperature's inverse.

    Those that turn more than 32 times in the original context stay, those that turn less than once are divided by the
    factor; between these two dimensions, rounded outwards, it goes from one to the other in a straight line.
    """
    half, factor = len(frequency), scaling["factor"]
    place = [
        half * np.log(scaling["original_max_position_embeddings"] / (2 * np.pi * n)) / np.log(theta) for n in (32, 1)
    ]
    first, last = max(np.floor(place[0]), 0), min(np.ceil(place[1]), 2 * half - 1)
    divided = np.clip((np.arange(half) - first) / (last - first), 0, 1)
    return frequency * (1 - divided) + frequency / factor * divided, 0.1 * np.log(factor) + 1


def published_logits(config, tensors, embedding, tokens, aux, steps, *, moves=True):
    """Logits [row][draft vocab] of every draft step, each row fed with the true tokens.

    Args:
      config: published, the decoder's keys on top.
      tensors: published, as float64.
      embedding: the target's; not read where the draft has its own.
      tokens, aux: of one sequence.
      steps: draft steps.
      moves: a sliding window goes on with the position, a draft step at a time, as in vLLM. In speculators' training it
        stays where the first pass had it.
    """
    names = {}
    for name, value in tensors.items():
        short = name.removeprefix("model.").replace("layers.0.", "").replace("midlayer.", "")
        names[short] = value
    w = names.__getitem__
    embedding = names.get("embed_tokens.weight", embedding)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim, eps = len(w("self_attn.q_proj.weight")) // heads, config["rms_norm_eps"]
    rows, layers = len(tokens) - 1, len(aux[0]) // (config.get("target_hidden_size") or config["hidden_size"])
    norm_before_fc = config.get("norm_before_fc") or config.get("eagle_config", {}).get("norm_before_fc")
    window = config["sliding_window"] if config.get("layer_types") == ["sliding_attention"] else rows + steps

    def project(part, x, n, position):
        y = w(f"self_attn.{part}_proj.weight") @ x + names.get(f"self_attn.{part}_proj.bias", 0.0)
        out = []
        for head in y.reshape(n, dim):
            if f"self_attn.{part}_norm.weight" in names:
                head = rms(head, w(f"self_attn.{part}_norm.weight"), eps)
            out.append(head if part == "v" else turned(head, position, config))
        return out

    def fused(f):
        if norm_before_fc:
            f = rms(f, w("input_norm.weight"), eps)
        if config.get("fc_norm"):
            parts = np.split(f, layers)
            f = np.concatenate([rms(part, w(f"fc_norm.{i}.weight"), eps) for i, part in enumerate(parts)])
        return w("fc.weight") @ f

    first, later, result = [], [[] for _ in range(rows)], []
    states = [fused(aux[t]) for t in range(rows)]
    for step in range(steps):
        logits = []
        for t in range(rows):
            token = tokens[t + 1 + step] if t + 1 + step < len(tokens) else 0
            normed = rms(states[t], w("hidden_norm.weight"), eps)
            x = np.concatenate([rms(embedding[token], w("input_layernorm.weight"), eps), normed])
            q, k, v = (project(part, x, n, t + step) for part, n in (("q", heads), ("k", kv), ("v", kv)))
            (later[t] if step else first).append((k, v))
            seen = first[max(0, t + (step if moves else 0) - window + 1) : t + 1] + later[t]
            mixed = []
            for head in range(heads):
                of = head // (heads // kv)
                scores = np.array([q[head] @ key[of] for key, _ in seen]) * dim**-0.5
                weights = np.exp(scores - scores.max())
                mixed.append(sum(p * value[of] for p, (_, value) in zip(weights / weights.sum(), seen, strict=True)))
            o = w("self_attn.o_proj.weight") @ np.concatenate(mixed) + names.get("self_attn.o_proj.bias", 0.0)
            h = (normed if config.get("norm_before_residual") else states[t]) + o
            inner = rms(h, w("post_attention_layernorm.weight"), eps)
            gate = w("mlp.gate_proj.weight") @ inner
            h = h + w("mlp.down_proj.weight") @ (gate / (1 + np.exp(-gate)) * (w("mlp.up_proj.weight") @ inner))
            y = rms(h, w("norm.weight"), eps)
            states[t] = y if config.get("norm_output") else h
            logits.append(w("lm_head.weight") @ y)
        result.append(np.array(logits[: rows - step]))
    return result


def released(tensors, aux):
    """The released SpecExit draft's ``fc``: what goes on into the layer, and the signals of every position.

    Its rows are those of a plain EAGLE-3 draft and, behind them, one for each of confidence, progress and remain. A
    signal reads the target's states of its position and nothing else: neither the layer nor another position.

    Args:
      tensors: as exported for it, as float64.
      aux: of one sequence.

    Returns:
      The tensors of the plain draft, and [position][confidence, progress, remain].
    """
    hidden = len(tensors["norm.weight"])
    trunk = tensors | {"fc.weight": tensors["fc.weight"][:hidden]}
    signals = []
    for f in aux:
        z0, z1, z2 = tensors["fc.weight"][hidden:] @ f
        signals.append([1 / (1 + np.exp(-z0)), 1 / (1 + np.exp(-z1)), np.exp(z2)])
    return trunk, np.array(signals)
