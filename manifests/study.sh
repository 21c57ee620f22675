#!/bin/sh
# manifests/study.sh DATA TEACHER RUNS SEED…: the students of docs/results/study.md, one after another.
# What is done is left alone: run it again after an interruption. STEPS=7200 gives the pseudolabels as
# many steps, STUDENTS="gold-first gold-last" trains those alone.
set -eu
data=$1 teacher=$2 runs=$3
shift 3

GOLD='name: gold, data: gold'
PSEUDOLABELS='name: pseudolabel, data: pseudolabels'
FIRST='learning_rate: 3e-3, final_learning_rate: 3e-4, batch_tokens: 1024'
LAST='steps: 400, validate_steps: 100, learning_rate: 3e-4, batch_tokens: 1024'
LONG="steps: ${STEPS:-2400}, validate_steps: 800, $FIRST"
INTERPOLATED="SELECT c.sample_id, c.rank, s.source, c.text AS target, c.token_ids FROM candidates c
  JOIN samples s USING (sample_id) JOIN signals g USING (sample_id, rank) JOIN verdicts v USING (sample_id, rank)
  WHERE v.kept AND s.gold IS NOT NULL
  QUALIFY row_number() OVER (PARTITION BY c.sample_id ORDER BY g.chrf_gold DESC, c.rank) = 1"

step() {  # step COMMAND RUN [OPTION…]
  command=$1 run=$2
  shift 2
  seqkd "$command" manifests/study.yaml --run-dir "$runs/$run" --set "data.root=$data" \
    --set "teacher.model=$teacher" --set "seed=$seed" "$@"
}

student() {  # student NAME STAGES: takes over the seed's candidates
  case " ${STUDENTS:-$1} " in *" $1 "*) ;; *) return 0 ;; esac
  if [ "$1" = interpolated ] && ! [ -d "$runs/$1-$seed" ]; then
    # Its first stage is the one of gold-last, to the bit: the trainer finds it done.
    cp -r "$runs/gold-last-$seed" "$runs/$1-$seed"
  fi
  step run "$1-$seed" --set "candidates_from=$runs/candidates" --set "student.stages=[$2]"
}

seed=17
step generate candidates
for seed in "$@"; do
  student gold "{$GOLD, steps: 2800, validate_steps: 400, $FIRST}"
  student gold-first "{$GOLD, steps: 400, validate_steps: 100, $FIRST}, {$PSEUDOLABELS, $LONG}"
  student gold-last "{$PSEUDOLABELS, $LONG}, {$GOLD, $LAST}"
  student word-kd "{$PSEUDOLABELS, objective: {ce: 0.5, forward_kl: 0.5}, $LONG}, {$GOLD, $LAST}"
  student interpolated "{$PSEUDOLABELS, $LONG}, {name: interpolated, data: \"$INTERPOLATED\", $LAST}"
done
