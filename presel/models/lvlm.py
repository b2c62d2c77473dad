"""Large vision-language models: location, prompt template, names of their parts, loading."""

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from presel.component import component
from presel.data.prompts import OWN_TEMPLATE, TEMPLATES, chat_template
from presel.errors import PreselError
from presel.models.hardware import Hardware, device_for, runs_under_autocast
from presel.models.image_settings import check_fitting
from presel.models.model_files import ModelFiles, locate
from presel.models.pretrained import load_pretrained, load_weights, model_errors
from presel.models.processors import copy_processor, load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


@component
class Lvlm(ModelFiles):
    """A vision-language model that transformers loads as an image-text-to-text model.

    Attributes:
        template: Prompt template: `processor` for the chat template that comes with the model, or a key of
            `presel.data.prompts.TEMPLATES`, which must end a response by the tokenizer's end-of-sequence
            token.
        max_length: Maximum prompt length in tokens, image tokens included; longer prompts are truncated, but
            not inside an image, and reported, longer questions of benchmarks refused.
        language_model: Name of the language model's module.
        projector: Name of the module between vision tower and language model, or a list of names.
        pad_to_square: Pad images to squares with the processor's mean color, as LLaVA-1.5 does.
        image_settings: Settings of the model's image processor that replace the saved ones, by its own names:
            such as `max_pixels` and `min_pixels` (Qwen), or `max_patches` (InternVL).
        dtype: Precision of the loaded weights: float32, bfloat16 or float16.
    """

    group: ClassVar[str] = "lvlm"

    template: str = "vicuna_v1"
    max_length: Annotated[int, Field(gt=0)] = 2048
    language_model: str = "language_model"
    projector: str | list[str] = "multi_modal_projector"
    pad_to_square: bool = True
    image_settings: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Checks the template."""
        if self.template not in (*TEMPLATES, OWN_TEMPLATE):
            known = ", ".join((*TEMPLATES, OWN_TEMPLATE))
            raise ValueError(f"unknown template {self.template!r}; choose one of {known}")

    @property
    def projectors(self) -> list[str]:
        """The names of the modules between vision tower and language model."""
        return [self.projector] if isinstance(self.projector, str) else self.projector

    @property
    def family(self) -> str:
        """The model's family by transformers' name, the configuration's `model_type`.

        Raises:
            PreselError: If the configuration cannot be read.
        """
        return str(self._load_config().model_type)

    def identity(self) -> dict[str, Any]:
        """As that of `ModelFiles`, without image settings if there are none."""
        identity = super().identity()
        if not self.image_settings:
            del identity["image_settings"]
        return identity

    def check_parts(self) -> None:
        """Checks processor, template and the names of modules, without the weights.

        Raises:
            PreselError: If the model cannot be used with these settings.
        """
        from presel.models.conversations import ConversationEncoder

        if self.image_settings:
            check_fitting(self._load_config(), self.load_processor(), self.image_settings, self.path)
        ConversationEncoder(self)
        self._check_names(self.without_weights())

    def without_weights(self) -> "PreTrainedModel":
        """The model on the meta device, where weights take no memory, for the names of its modules.

        Raises:
            PreselError: If it is no model of images and text.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        config = self._load_config()
        with model_errors(f"lvlm.path: {self.path} is no model of images and text"), torch.device("meta"):
            model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
        return model

    def _load_config(self) -> Any:
        from transformers import AutoConfig

        return load_pretrained(AutoConfig, locate(self.path), revision=self.revision)

    def load_processor(self) -> "ProcessorMixin":
        """The model's processor: tokenizer and image processor.

        Raises:
            PreselError: If it cannot be loaded, takes no images, is PaliGemma's, has no chat template where
                that is to be used, or its end-of-sequence token, at which generation stops, is not the one by
                which the template ends a response.
        """
        from transformers import PaliGemmaProcessor

        processor: Any = load_processor(locate(self.path), self.revision, "lvlm.path", self.image_settings)
        if isinstance(processor, PaliGemmaProcessor):
            raise PreselError(
                f"lvlm.path: {self.path} is a PaliGemma, which knows no chats and reads a question in both "
                "directions, unlike its answers; name a model that is tuned for chat, such as Gemma 3"
            )
        if self.template == OWN_TEMPLATE and not processor.chat_template:
            raise PreselError(
                f"lvlm.template=processor: {self.path} has no chat template; name the model's version that "
                "is tuned for chat (Instruct, it), put a chat_template.jinja into its folder, or set one of "
                f"{', '.join(TEMPLATES)}"
            )
        self._check_tokenizer(processor.tokenizer)
        return processor

    def _check_tokenizer(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise PreselError(
                f"lvlm.path: the tokenizer of {self.path} has no tokenizer.json, which is needed to "
                "distinguish special tokens from text; save it as a fast tokenizer of transformers"
            )
        if tokenizer.encode("a")[-1] == tokenizer.eos_token_id:
            raise PreselError(
                f"lvlm.path: the tokenizer in {self.path} ends every text by {tokenizer.eos_token}, prompts "
                "that are to be answered too; set add_eos_token to false in its tokenizer_config.json"
            )
        if self.template == OWN_TEMPLATE:
            return
        end, own = TEMPLATES[self.template].end, tokenizer.eos_token
        # A tokenizer's end of sequence is always a token.
        if end == own:
            return
        fitting = [f"lvlm.template={name}" for name, template in TEMPLATES.items() if template.end == own]
        remedy = (
            f"set {' or '.join(fitting)}"
            if fitting
            else f"take a model that ends its answers by '{end}' (of Llama 3, the Instruct one), or name it "
            "as eos_token in tokenizer_config.json if the vocabulary has that token"
        )
        raise PreselError(
            f"lvlm.template={self.template} ends a response by '{end}', but the tokenizer in {self.path} "
            f"ends a sequence by '{own}', so that answers would never stop; {remedy}"
        )

    def save_processor(self, folder: Path) -> None:
        """Writes a processor for other programs that prepares prompts and images as in tuning.

        That of a model with a chat template of its own is copied. Of others only a CLIP tower's image
        processor can include padding to squares; any other is saved unchanged.
        """
        from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

        if self.template == OWN_TEMPLATE:
            copy_processor(locate(self.path), self.revision, self.image_settings, folder)
            return
        processor: Any = self.load_processor()
        processor.chat_template = chat_template(self.template)
        if self.pad_to_square and isinstance(processor.image_processor, CLIPImageProcessorPil):
            settings = processor.image_processor.to_dict()
            del settings["image_processor_type"]
            processor.image_processor = LlavaImageProcessorPil(**settings | {"do_pad": True})
        processor.save_pretrained(folder)

    def load_model(self, adapter: Path | None = None) -> "PreTrainedModel":
        """The model, in eval mode.

        Args:
            adapter: Folder of a PEFT adapter to merge into the weights, in `dtype`; LLaVA merges in float16.

        Raises:
            PreselError: If the model lacks a module named in the config.
        """
        import torch
        from peft import PeftModel
        from transformers import AutoModelForImageTextToText

        name, dtype = locate(self.path), getattr(torch, self.dtype)
        model: PreTrainedModel = load_weights(
            AutoModelForImageTextToText, name, revision=self.revision, dtype=dtype
        )
        self._check_names(model)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        return model.eval()

    def _check_names(self, model: "PreTrainedModel") -> None:
        # The model itself has the empty name.
        names = [name for name, _ in model.base_model.named_modules() if name]
        for key, wanted in (("language_model", [self.language_model]), ("projector", self.projectors)):
            for one in wanted:
                if not any(f".{name}".endswith(f".{one}") for name in names):
                    # Parts of the model, and of its vision tower the last ones.
                    parts = [name for name in names if name.count(".") < 2 and not name[-1].isdigit()]
                    raise PreselError(
                        f"lvlm.{key}: {self.path} has no module named '{one}'; name the right one of "
                        f"{', '.join(parts)}"
                    )

    def load_for_inference(self, hardware: Hardware, adapter: Path | None = None) -> "PreTrainedModel":
        """The model on its device, computing in the precision that it is tuned in; see `load_model`."""
        import torch

        device = device_for(hardware.accelerator)
        model = self.load_model(adapter).to(device)
        if runs_under_autocast(hardware, self.dtype):
            autocast = torch.autocast(device.type, dtype=torch.bfloat16)
            # Not the whole model alone: scoring calls these two apart.
            for module in (model.base_model, model.get_output_embeddings()):
                module.forward = autocast(module.forward)
        return model
