-- The candidate most like the gold that the student may see, by chrF: sequence interpolation (Kim and
-- Rush 2016, §3.3), with the metric of Mozilla's n-best. Without such gold, the teacher's best.
chrf_gold DESC
