"""Every key there is, with its unit and its default. A run's own file changes what it needs.

This file is data: it imports nothing from salt_jax, and each key is explained where it stands. Types and
allowed values are checked by salt_jax/run/config.py before anything compiles.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults that every configuration starts from."""
    c = config_dict.ConfigDict()
    c.seed = 0  # initial parameters, data order and sampling
    c.steps = 100  # rollout batches; each is minibatches x epochs optimizer steps
    c.init_from = ""  # a finished run's workdir to take the initial policy from; '' starts from random weights

    c.task = config_dict.ConfigDict()
    c.task.name = "arithmetic"  # a key of salt_jax.tasks.TASKS
    c.task.correct_from = 1.0  # reward of the grader from which a completion is a success; docs/methods.md
    # The other keys are that task's arguments.
    c.task.operands = 2  # numbers in a problem
    c.task.digits = 2  # digits of an operand at most
    c.task.operators = "+"  # characters out of '+-*', drawn uniformly
    c.task.num_train = 8000  # problems
    c.task.num_test = 2000  # problems, disjoint from the training split
    c.task.seed = 0  # which problems are drawn and how they are split

    c.model = config_dict.ConfigDict()
    c.model.path = ""  # Hugging Face folder, .gguf file, imported folder, or 'smollm2'; '' starts from random weights
    c.model.chat = True  # prompts go through the tokenizer's chat template; False: as they are
    c.model.system = ""  # system message; '' sends none (a template may add its own)
    c.model.template = config_dict.ConfigDict()  # variables of the chat template, such as enable_thinking (Qwen3)

    c.grading = config_dict.ConfigDict()  # for tasks whose verifier runs in workers
    c.grading.workers = 2  # processes
    c.grading.deadline = 10.0  # seconds a completion; past it the worker is killed and the reward is missing
    c.grading.memory_mib = 2048  # MiB of address space a worker

    # salt_jax.policy.TransformerConfig; the vocabulary is the tokenizer's. With model.path the shape is the
    # checkpoint's, and every key of it here is None (``pretrained``).
    c.policy = config_dict.ConfigDict()
    c.policy.d_model = 96  # width of the residual stream
    c.policy.num_layers = 3
    c.policy.num_heads = 4
    c.policy.num_kv_heads = 4  # divides num_heads
    c.policy.head_dim = 24  # even
    c.policy.mlp_dim = 256  # SwiGLU hidden width
    c.policy.rope_theta = 10_000.0
    c.policy.rms_norm_eps = 1e-6
    c.policy.qkv_bias = False
    c.policy.qk_norm = False
    c.policy.tied_embeddings = True
    c.policy.compute_dtype = "float32"  # or 'bfloat16'; parameters and reductions stay float32
    c.policy.scan_layers = True  # False unrolls the layers: samples faster on CPU, compiles longer where deep
    c.policy.attention = "segments"  # or 'cudnn' (NVIDIA GPUs, bfloat16), 'splash' (TPUs), 'xla' (to compare with)
    c.policy.remat = "none"  # recomputed in the backward pass: 'none', 'dots' (all but products with weights), 'full'

    c.sampling = config_dict.ConfigDict()
    c.sampling.prompts_per_step = 32  # B, groups in a rollout batch
    c.sampling.rollouts_per_prompt = 16  # G, rollouts in a group
    c.sampling.max_prompt_length = 8  # tokens
    c.sampling.on_long_prompt = "error"  # before anything compiles; or 'skip' such problems, and say how many
    c.sampling.max_new_tokens = 4  # tokens of a completion, its end token included
    c.sampling.temperature = 1.0  # > 0 in training
    c.sampling.top_k = 0  # 0 keeps all tokens; must be 0 in training: filters bias the policy gradient
    c.sampling.top_p = 1.0  # 1 keeps all tokens; must be 1 in training
    c.sampling.cache_dtype = "compute"  # of keys and values: policy.compute_dtype, or 'bfloat16'
    c.sampling.wave_mib = config_dict.placeholder(int)  # MiB a device for caches and logits; None: all rollouts at once

    # How the rollouts of a step come to be (salt_jax.collect). What a method does not read keeps its default.
    c.collection = config_dict.ConfigDict()
    c.collection.method = "plain"  # a key of salt_jax.collect.COLLECTORS
    c.collection.clusters = ""  # classes of completions ('darling'): 'text', 'answer', 'package.module:function'
    c.collection.segments = ""  # 'newline': list items of a completion, for 'rank_grpo' and macro-actions
    c.collection.max_batches = 10  # generation batches a step at most ('dynamic')
    c.collection.on_exhausted = "error"  # then; or 'train' on the groups with signal alone ('dynamic')
    c.collection.sampled_rollouts = config_dict.placeholder(int)  # a prompt; None: 4 x rollouts_per_prompt ('pods')
    c.collection.round_rollouts = config_dict.placeholder(int)  # a prompt; None: rollouts_per_prompt ('reinforce_ada')
    c.collection.max_rounds = 4  # rounds a step at most ('reinforce_ada')
    c.collection.exit_rule = "balance"  # half positive, half negative; or 'positive' ('reinforce_ada')
    c.collection.positives = 1  # rollouts that exit_rule 'positive' asks for ('reinforce_ada')
    c.collection.pool_weight = "one"  # of advantages; or 'inverse_rate', 1 / success rate of the pool ('reinforce_ada')
    # 'reinforce_ada_est' and 'gvm' share prompts_per_step slots of rollouts_per_prompt rollouts out to fewer prompts.
    c.collection.distinct_prompts = config_dict.placeholder(int)  # a step; None: half of prompts_per_step
    c.collection.min_slots = 1  # of a prompt ('gvm': of a prompt with a right pilot, else 0)
    c.collection.max_slots = 4  # of a prompt
    c.collection.count_decay = 0.9  # of a prompt's counts at each visit ('reinforce_ada_est')
    c.collection.prior_positive = 1.0  # rollouts, Beta prior of a success rate ('reinforce_ada_est')
    c.collection.prior_negative = 1.0
    c.collection.rate_eps = 0.01  # added to a success rate before the root ('reinforce_ada_est')
    c.collection.decay_selected = 0.2  # of the counts of prompts in the batch, a step ('vade')
    c.collection.decay_others = 0.999  # of the counts of all others ('vade')
    c.collection.pilots = 8  # rollouts of a prompt that its share is estimated from ('gvm')
    c.collection.gvm_alpha = 1e-3  # holds back prompts that are hardly ever solved ('gvm')
    c.collection.gvm_beta = 2.0  # >= 1, how steeply ('gvm')
    c.collection.entropy_target = 0.5  # nats a token ('aepo')
    c.collection.temperature_high = 1.2  # of the second sampling where entropy is at or below the target ('aepo')
    c.collection.temperature_low = 0.8  # where it is above ('aepo')
    c.collection.max_injected = 60  # rollouts of a step; half as many where entropy is above the target ('aepo')
    c.collection.inject_above = 0.05  # group advantage above which a success is injected ('aepo')
    c.collection.hpt_gate = 0.0  # success rate up to which a prompt learns from its demonstration ('hpt')

    # salt_jax.objective.ObjectiveConfig; docs/methods.md has the methods. What no choice reads must keep its default.
    c.objective = config_dict.ConfigDict()
    c.objective.estimator = "grpo"  # of the advantages: a key of salt_jax.objective.ESTIMATORS
    c.objective.ddof = 1  # 1: sample standard deviation, 0: population ('grpo')
    c.objective.eps = 1e-6  # added to the standard deviation, units of reward ('grpo')
    c.objective.singleton = "zero"  # advantage in a group with one graded rollout; or 'reward', as the releases have it
    c.objective.gamma = 1.0  # discount a token ('reinforce_pp', 'reinforce_pp_baseline')
    c.objective.whiten_variance = "unbiased"  # over the batch's tokens, or 'biased' (the same two)
    c.objective.gtpo_gamma = 0.1  # reward a nat of mean entropy ('gtpo')
    c.objective.gtpo_threshold = 0.6931471805599453  # nats of mean entropy, ln 2, above which a rollout is dropped
    c.objective.gtpo_penalize_degenerate = True  # take the entropy off also in a group without signal ('gtpo')
    c.objective.opmd_baseline = "mean"  # or 'log_mean_exp' ('opmd')
    c.objective.tau = 1.0  # units of reward (estimator 'opmd': its baseline; surrogate 'opmd': its scale)
    c.objective.asymre_shift = -0.1  # units of reward, added to the mean as a baseline ('asymre')
    c.objective.darling_floor = 0.0  # least diversity a reward is multiplied with; the release has 0.1 ('darling')
    c.objective.darling_form = "multiply"  # the reward with the diversity; or 'add' them ('darling')
    c.objective.darling_lambda_reward = 1.0  # weights where they are added
    c.objective.darling_lambda_diversity = 1.0
    c.objective.darling_add_bias = False  # first take off the group's least reward ('darling')
    c.objective.darling_partition_correct = False  # diversity among successes only ('darling')
    c.objective.copg_beta = 0.06  # reward a nat of log-ratio to the reference ('copg')
    c.objective.rank_reward = "exp_inf"  # 'dcg', 'exp_gamma' ('rank_grpo')
    c.objective.rank_gamma = 2.0  # base of the discount over ranks ('exp_gamma')
    c.objective.overlong_buffer = 0  # tokens before max_new_tokens in which a penalty grows to -1 reward; 0: none
    c.objective.filters = ""  # comma-separated: pods, red_drop, informative, not_truncated, positive_only, winners, d3s
    c.objective.pods_keep = 4  # rollouts a group keeps ('pods')
    c.objective.d3s_rollouts_first = 4  # rollouts a group keeps at the start of the run ('d3s')
    c.objective.d3s_rollouts_last = 8  # and at its end
    c.objective.d3s_batch = 1.0  # share of those that the batch keeps ('d3s')
    c.objective.tokens = "all"  # 'conflict' weighs them (GTPO), 'd3s' keeps those of large |A|·H
    c.objective.gtpo_form = "paper"  # or 'release': divided by a row's conflicts, summed over a group ('conflict')
    c.objective.gtpo_weight = 2.0  # of a conflict token of a positive rollout ('conflict')
    c.objective.d3s_tokens_first = 0.2  # share of the tokens kept at the start of the run (tokens 'd3s')
    c.objective.d3s_tokens_last = 1.0  # and at its end
    c.objective.surrogate = "ppo_clip"  # a key of salt_jax.objective.SURROGATES
    c.objective.clip_low = 0.2  # ratio clipped below 1 - clip_low
    c.objective.clip_high = 0.2  # ratio clipped above 1 + clip_high
    c.objective.dual_clip = config_dict.placeholder(float)  # bound > 1 of the ratio where A < 0; None: none
    c.objective.rec_mask = "none"  # 'one_side', 'two_side', 'ring', 'gspo_one_side' ('rec')
    c.objective.rec_weight = "none"  # 'importance', 'gspo_importance', 'advantage' ('rec')
    c.objective.rec_outer_low = 0.6  # outer clips of the ring ('rec')
    c.objective.rec_outer_high = 2.0
    c.objective.rec_temperature = 1.0  # of the weight exp(A / temperature) ('rec')
    c.objective.rec_regularizer = "none"  # 'k2', 'forward_kl' ('rec')
    c.objective.rec_coef = 0.1  # its weight ('rec')
    c.objective.clip_cov_fraction = 2e-4  # share of the tokens whose gradient is dropped ('clip_cov')
    c.objective.clip_cov_low = 1.0  # covariance of a token that may be among them, from
    c.objective.clip_cov_high = 5.0  # to
    c.objective.kl_cov_fraction = 2e-4  # share of the tokens with a KL term ('kl_cov')
    c.objective.kl_cov_coef = 1.0  # per nat ('kl_cov')
    c.objective.macro_length = 5  # tokens of a macro-action ('macro_sum', 'macro_mean')
    c.objective.lp_reg_form = "release"  # or 'paper' ('lp_reg')
    c.objective.lp_reg_fraction = 0.01  # share of the tokens that may be regularised, the least likely ('lp_reg')
    c.objective.lp_reg_proxy = "min_p"  # keeps tokens from a share of the largest probability on; or 'fixed'
    c.objective.lp_reg_kappa = 0.02  # that share, or probability ('lp_reg')
    c.objective.lp_reg_beta = 1.0  # per nat of KL to the proxy ('lp_reg')
    c.objective.lp_reg_cap = 10.0  # upper bound of the ratio ('lp_reg')
    c.objective.importance = "none"  # sampler's log-probs against the trainer's: 'token', 'sequence', '…_mask'
    c.objective.importance_low = 0.0  # bounds of its ratio
    c.objective.importance_high = 2.0
    c.objective.importance_normalize = False  # weights of a minibatch to mean 1
    c.objective.demonstration_coef = 1.0  # weight of demonstrations' loss (collection.method = 'hpt')
    c.objective.aggregation = "token_mean"  # 'seq_mean_token_mean', 'seq_mean_token_sum', 'dr_grpo', 'token_sum_norm'
    c.objective.kl_in = "loss"  # or 'reward'; to the policy at the start of the run
    c.objective.kl_estimator = "k3"  # 'k2', 'k3', 'k3_plus' in the loss, 'k1' in the reward
    c.objective.kl_coef = 0.0  # per nat; > 0 keeps a second copy of the parameters, as 'copg' does
    c.objective.entropy_coef = 0.0  # per nat; > 0 rewards entropy

    # salt_jax.salt.SaltConfig, and how the Gram matrix is made: by the policy before the step, also for later
    # minibatches and epochs, of the rollouts that objective.filters leave (without unanimous groups PR and k change).
    c.salt = config_dict.ConfigDict()
    c.salt.enabled = True
    c.salt.feature = "lm_head"  # gradient feature: 'lm_head', 'lm_head_sketch', 'taken_token', 'per_rollout'
    c.salt.scope = "mini_batch"  # unit of the geometry: 'mini_batch', 'group', or a number of rollouts
    c.salt.length_normalize = True  # token mean of the feature (the paper); False: token sum (the release)
    c.salt.vocab_chunk = config_dict.placeholder(int)  # columns of the features held at once; None: from memory_mib
    c.salt.memory_mib = config_dict.placeholder(int)  # MiB a device for the exact Gram; None: 16 on a CPU, 1024 else
    c.salt.route = "auto"  # exact Gram by 'features', token 'pairs', or whichever takes fewer operations
    c.salt.rank_vocab = 1024  # 'lm_head_sketch': columns for the vocabulary, 7/8 kept tokens, 1/8 random signs
    c.salt.rank_hidden = 64  # 'lm_head_sketch': columns for the hidden states, 7/8 kept directions, 1/8 random signs
    c.salt.subset = "layers"  # 'per_rollout': parameters whose path matches this regular expression
    c.salt.subset_microbatch = 16  # 'per_rollout': rollouts whose backward passes live at once
    c.salt.measure_every = 0  # steps; with SALT off, log the geometry every so often (0: never)
    c.salt.rho = 1.0  # subspace size in units of the participation ratio
    c.salt.k_min = 1  # directions
    c.salt.k_max = config_dict.placeholder(int)  # directions; None: no limit
    c.salt.alpha_min = 0.0
    c.salt.alpha_max = 1.0
    c.salt.variant = "salt"  # a key of salt_jax.salt.VARIANTS: the method, its ablations and controls
    c.salt.rescale = False  # give a' the standard deviation of a
    c.salt.fixed_alpha = 0.5  # variant 'fixed_alpha'
    c.salt.eigen = "auto"  # eigenvectors: 'full' eigh, 'iterative' (checked, eigh where refused), 'auto': by size

    c.learner = config_dict.ConfigDict()
    c.learner.minibatches = 1  # optimizer steps per pass over a rollout batch; divides prompts_per_step
    c.learner.epochs = 1  # passes over a rollout batch; log-probs of the first are the old ones throughout
    c.learner.microbatches = 1  # gradient accumulation: parts of a minibatch; changes memory, not the result
    c.learner.vocab_chunk = 4096  # vocabulary columns held at once
    c.learner.length_buckets = 4  # completion lengths an update may be compiled for, each when first met; 1: the limit
    c.learner.prompt_buckets = 1  # the same for prompts; more where max_prompt_length is far above most batches

    c.optimizer = config_dict.ConfigDict()  # AdamW
    c.optimizer.learning_rate = 2e-4
    c.optimizer.warmup_steps = 0  # optimizer steps of linear warm-up
    c.optimizer.schedule = "constant"  # after the warm-up: 'constant', 'linear' or 'cosine' to 0 at the last step
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 0.0  # of weights; scales of norms and biases do not decay
    c.optimizer.clip_norm = 1.0  # global gradient norm; 0 does not clip

    c.warm_start = config_dict.ConfigDict()  # supervised, on the task's own solutions, for random weights
    c.warm_start.steps = 0  # optimizer steps; 0 skips the phase
    c.warm_start.batch_size = 128  # solutions
    c.warm_start.learning_rate = 1e-3
    c.warm_start.objective = "sft"  # next-token loss; 'otr': One-Token Rollout, 'otr_exact': its expectation
    c.warm_start.otr_samples = 256  # tokens drawn at each position ('otr')
    c.warm_start.otr_temperature = 1.3  # they are drawn at; unconfirmed: the paper's value is not known to us
    c.warm_start.otr_beta = -0.1  # reward of a wrong token, < 1; unconfirmed likewise

    c.evaluation = config_dict.ConfigDict()  # on the test split
    c.evaluation.every = 100  # steps; also before the first and after the last (0: only those two)
    c.evaluation.problems = 2000  # at most the size of the test split
    c.evaluation.batch_size = 500  # problems decoded at once
    c.evaluation.samples = 1  # n completions a problem: avg@n, pass@k for k <= n
    c.evaluation.temperature = 0.0  # 0 is greedy
    c.evaluation.top_p = 1.0  # 1 keeps all tokens
    c.evaluation.max_new_tokens = config_dict.placeholder(int)  # tokens; None: sampling.max_new_tokens
    c.evaluation.keep_texts = False  # write every completion to evaluations/STEP.jsonl

    c.checkpoint = config_dict.ConfigDict()
    c.checkpoint.every = 50  # steps; a kill costs at most so many
    c.checkpoint.keep = 2  # newest checkpoints kept
    c.checkpoint.best_by = ""  # metric of the evaluations ('accuracy', 'pass@8', …) whose best checkpoint is kept too
    c.checkpoint.best_mode = "max"  # or 'min'

    c.guards = config_dict.ConfigDict()  # a non-finite loss, Gram matrix, advantage or gradient norm skips its update
    c.guards.max_skipped = 3  # steps in a row that may skip an update; one more stops the run. 0 stops at the first

    # Past a threshold a step warns, or the run stops; None never does. kl_ref needs objective.kl_coef > 0.
    c.monitors = config_dict.ConfigDict()
    for name in ("entropy_low", "entropy_high", "approx_kl_high", "kl_ref_high", "ratio_high", "sampler_gap_high",
                 "grad_norm_high", "truncated_high"):  # fmt: skip
        c.monitors[f"{name}_warn"] = config_dict.placeholder(float)
        c.monitors[f"{name}_stop"] = config_dict.placeholder(float)
    c.monitors.truncated_high_warn = 0.2  # share of completions cut off at max_new_tokens
    c.monitors.patience = 1  # steps in a row past a '_stop' threshold before the run stops

    c.mesh = config_dict.ConfigDict()  # devices along each axis; the product is the number of devices used
    c.mesh.data = 1  # batch
    c.mesh.fsdp = 1  # batch, and parameters in shards
    c.mesh.tensor = 1  # heads, feed-forward width, vocabulary

    c.logging = config_dict.ConfigDict()
    c.logging.tensorboard = True  # event files in the workdir
    c.logging.print_every = 20  # steps between lines where there is no terminal
    c.lock()  # an unknown key is an error
    return c


# Keys of config.policy that a checkpoint has.
SHAPE = (
    "d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "rope_theta", "rms_norm_eps",
    "qkv_bias", "qk_norm", "tied_embeddings",
)  # fmt: skip


def pretrained(c: config_dict.ConfigDict, path: str) -> None:
    """Starts from the model at ``path``, whose shape it has."""
    c.model.path = path
    for key in SHAPE:
        c.policy[key] = None


def set_task(c: config_dict.ConfigDict, name: str, **settings: object) -> None:
    """Another task with its own settings, all of which can then be overridden on the command line."""
    with c.unlocked():
        c.task = config_dict.ConfigDict({"name": name, "correct_from": c.task.correct_from, **settings})
    c.task.lock()


# What the paper's prompts end with.
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."


def small_model(c: config_dict.ConfigDict) -> None:
    """The same path on a laptop: SmolLM2-135M, two steps of two prompts, one device."""
    pretrained(c, "smollm2")
    c.steps = 2
    c.policy.compute_dtype, c.policy.attention, c.policy.remat = "float32", "segments", "none"
    c.sampling.prompts_per_step, c.sampling.rollouts_per_prompt = 2, 4
    c.sampling.max_prompt_length, c.sampling.on_long_prompt = 256, "skip"
    c.sampling.max_new_tokens = 8
    c.sampling.wave_mib = None
    c.learner.minibatches = c.learner.microbatches = 1
    c.evaluation.problems, c.evaluation.batch_size, c.evaluation.samples = 4, 4, 1
    c.grading.workers = 2
    c.checkpoint.every = 2
    c.logging.print_every = 1
    c.mesh.fsdp = 1
