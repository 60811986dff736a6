"""The settings of an answer as widgets: system prompt, length, and how the next token is chosen."""

from __future__ import annotations

import random
from typing import Any, Dict, Mapping

from qwenlib.infer import SYSTEM
from qwenlib.infer.settings import DRAWN, complete
from qwenlib.profile import Profile


class Sampling:
    """``widget`` holds the sliders, each with its unit and default; :meth:`read` gives what is set."""

    def __init__(self, profile: Profile, label: Mapping[str, str]):
        import ipywidgets

        said = complete(profile)
        longest = max(profile.data.seq_length - 1, 1)
        self.defaults: Dict[str, Any] = {
            "system": SYSTEM,
            "longest": min(said["max_new_tokens"], longest),
            "sample": said["do_sample"],
            "temperature": float(said["temperature"]),
            "top_k": said["top_k"],
            "top_p": float(said["top_p"]),
            "repetition": float(said["repetition_penalty"]),
            "seed": said.get("seed", 0),
        }
        wide = ipywidgets.Layout(width="98%")
        style = {"description_width": "25em"}

        def named(key: str) -> Dict[str, Any]:
            value = self.defaults[key]
            shown = label["default"].format(value=value)
            return {"value": value, "description": label[key] + shown, "style": style, "layout": wide}

        def slider(key: str, least: float, most: float, step: float) -> Any:
            """From ``least`` to ``most``, or as far as the default."""
            value = self.defaults[key]
            kind = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
            return kind(min=min(least, value), max=max(most, value), step=step, **named(key))

        self.system = ipywidgets.Textarea(
            value=SYSTEM, description=label["system"], rows=2, style=style, layout=wide, continuous_update=True
        )
        self.fields: Dict[str, Any] = {
            "system": self.system,
            "longest": slider("longest", 1, longest, 1),
            "sample": ipywidgets.Checkbox(
                value=said["do_sample"], description=label["sample"], indent=True, style=style, layout=wide
            ),
            "temperature": slider("temperature", 0.05, 2.0, 0.05),
            "top_k": slider("top_k", 0, 100, 1),
            "top_p": slider("top_p", 0.05, 1.0, 0.01),
            "repetition": slider("repetition", 1.0, 2.0, 0.01),
            "seed": ipywidgets.BoundedIntText(min=0, max=2**31 - 1, **named("seed")),
        }
        self.reset = ipywidgets.Button(
            description=label["defaults"], layout=ipywidgets.Layout(width="auto", align_self="flex-end")
        )
        self.reset.on_click(lambda _button: self.set_defaults())
        self.fields["sample"].observe(lambda _change: self._grey(), names="value")
        self.widget = ipywidgets.VBox([*self.fields.values(), self.reset])
        self._grey()

    def set_defaults(self) -> None:
        """Everything as the profile says."""
        for name, value in self.defaults.items():
            self.fields[name].value = value

    def read(self) -> Dict[str, Any]:
        """The settings of :meth:`qwenlib.infer.Session.chat`; a seed of 0 is replaced by one drawn now."""
        value = {name: field.value for name, field in self.fields.items()}
        found = {
            "max_new_tokens": value["longest"],
            "do_sample": value["sample"],
            "repetition_penalty": value["repetition"],
        }
        if value["sample"]:
            found.update({name: value[name] for name in DRAWN})
            found["seed"] = value["seed"] or random.randrange(1, 2**31)
        return found

    def _grey(self) -> None:
        for name in DRAWN:
            self.fields[name].disabled = not self.fields["sample"].value
