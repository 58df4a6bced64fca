"""Makes the bundled clips of `/otp`: what the page says where the browser has no voice of its own on the device.

    apt-get install espeak-ng lame
    python deploy/make_clips.py [--phonemes]

Reads `serving/pages/otp/words.json` (section `spoken`), writes per language one MP3 with all clips and a JSON of where each stands,
`{key: [start, seconds, text]}`; `--phonemes` prints how each is pronounced (IPA) instead. Both files are committed: run it after changing
what is said.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np

FILES = Path(__file__).parent.parent / "mlops_assets" / "serving" / "pages" / "otp"
VOICES = {"ko": ["-v", "ko", "-s", "160"], "en": ["-v", "en-us", "-s", "165"]}
RATE = 22050
#: Silence after each clip, in seconds: part of the pause between two when they are played one after the other, and what MP3 smears over.
AFTER, APART = 0.12, 0.12


def spoken(text: str, options: list[str]) -> np.ndarray:
    """int16 samples of `text`, without the silence around it."""
    sound = subprocess.run(["espeak-ng", *options, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(file.readframes(2**31 - 1), np.int16)
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 60)
    return samples[max(loud[0] - 200, 0) : loud[-1] + 400]


def make(language: str, words: dict[str, str]) -> None:
    parts, places, at = [], {}, 0
    for key, text in words.items():
        clip = spoken(text, VOICES[language])
        silence = np.zeros(int((AFTER + APART) * RATE), np.int16)
        places[key] = [round(at / RATE, 3), round(len(clip) / RATE + AFTER, 3), text]
        parts += [clip, silence]
        at += len(clip) + len(silence)
    folder = FILES / "clips"
    folder.mkdir(exist_ok=True)
    raw = [
        "lame",
        "--quiet",
        "-r",
        "-s",
        "22.05",
        "--bitwidth",
        "16",
        "--signed",
        "-m",
        "m",
        "-b",
        "24",
        "--resample",
        "16",
        "-",
        str(folder / f"{language}.mp3"),
    ]
    subprocess.run(raw, input=np.concatenate(parts).tobytes(), check=True)
    (folder / f"{language}.json").write_text(json.dumps(places, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{language}: {len(places)} clips, {at / RATE:.0f} s")


def main() -> None:
    for language, words in json.loads((FILES / "words.json").read_text(encoding="utf-8")).items():
        if "--phonemes" in sys.argv[1:]:
            for key, text in words["spoken"].items():
                said = subprocess.run(["espeak-ng", "-q", "--ipa", *VOICES[language], text], capture_output=True, text=True, check=True)
                print(f"{language} {key:10} {text}  [{' '.join(said.stdout.split())}]")
        else:
            make(language, words["spoken"])


if __name__ == "__main__":
    main()
