-- The candidate most like the gold that the student may see, by sentence BLEU: sequence interpolation
-- (Kim and Rush 2016, §3.3). Without such gold, the teacher's best.
bleu_gold DESC
