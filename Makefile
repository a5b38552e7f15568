# Every target sets up what it needs: a Python environment in .venv, then its own work.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
export TQDM_MININTERVAL ?= 1

define DEMO_DONE

Queries and the videos that they found: runs/demo/test/retrieval.png

Search the videos next:
  source $(VENV)/bin/activate
  python search.py index --checkpoint runs/demo/best.pt --videos data/demo/videos --output data/demo/index
  python search.py query --index data/demo/index --exclude-query --top 5 --html found.html --video data/demo/videos/Sliding/v_Sliding_g05_c02.avi
and open found.html in a browser.
endef
export DEMO_DONE

.PHONY: demo folder test test-fast test-all lint benchmark-gpu clean

demo: $(VENV)/ready  ## videos -> frames -> lists -> training -> retrieval, in a few minutes
	$(RUN) -m datasets.synthetic --output data/demo
	$(RUN) extract_frames.py --videos data/demo/videos --frames data/demo/frames --size 64 64
	$(RUN) make_splits.py --dataset ucf101 --annotations data/demo/annotations \
	    --frames data/demo/frames --output data/demo/splits
	$(RUN) train.py --config configs/demo.yaml
	$(RUN) test.py --checkpoint runs/demo/best.pt --untrained
	@printf '%s\n' "$$DEMO_DONE"

# Your own videos: make folder VIDEOS=my_videos
# NAME names the folders in data/ and runs/; SPLITS and TRAIN are further flags of the two scripts.
NAME ?= mine
DATA := data/$(NAME)
folder: $(VENV)/ready  ## your videos <class>/<video> -> frames -> lists -> training -> retrieval
	@test -d "$(VIDEOS)" || { echo "make folder VIDEOS=FOLDER, with videos FOLDER/<class>/<video>"; exit 1; }
	$(RUN) extract_frames.py --videos "$(VIDEOS)" --frames $(DATA)/frames --size 64 64
	$(RUN) make_splits.py --dataset folder --frames $(DATA)/frames --output $(DATA)/splits $(SPLITS)
	$(RUN) train.py --config configs/folder.yaml --frames $(DATA)/frames --splits $(DATA)/splits \
	    --output runs/$(NAME) $(TRAIN)
	$(RUN) test.py --checkpoint runs/$(NAME)

test: $(VENV)/ready-dev lint  ## the tests, without the slow ones, on at most four cores
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

test-fast: $(VENV)/ready-dev  ## the tests that start no scripts, for use while editing
	$(RUN) -m pytest $(PARALLEL) -m "not slow and not scripts"

test-all: $(VENV)/ready-dev lint  ## all tests
	$(RUN) -m pytest $(PARALLEL)

lint: $(VENV)/ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

benchmark-gpu: $(VENV)/ready  ## figures of a machine with a GPU, one table in nine minutes at most
	$(RUN) -m benchmarks.gpu

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-dev: requirements-dev.txt requirements-serve.txt $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:  ## remove the environment, the demo's data and its run
	rm -rf $(VENV) data/demo runs/demo
