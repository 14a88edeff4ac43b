// The stats own every number that is counted rather than kept: what this
// process has seen since it started, and how Prometheus reads it. Nothing is
// decided by them.
package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// stats are the counters of this process. The zero value is ready; anybody may
// count at any time.
type stats struct {
	runs    countBy   // executions put on record as ended here, by outcome
	ticks   countBy   // ticks decided here, by outcome
	commits histogram // from a proposal to its application
}

// countBy is a counter for each of a few known labels.
type countBy [8]atomic.Int64

// The labels that are counted, each at its index in a countBy.
var (
	runOutcomes  = []string{outcomeSuccess, outcomeFailed, outcomeKilled, outcomeInterrupted, outcomeLost}
	tickOutcomes = []string{outcomeRan, outcomeLate, outcomeSkipped, outcomeMissed}
)

// ran counts executions that ended.
func (s *stats) ran(outcome string) {
	if i := slices.Index(runOutcomes, outcome); i >= 0 {
		s.runs[i].Add(1)
	}
}

// decided counts ticks whose outcome was accepted.
func (s *stats) decided(outcome string, n int64) {
	if i := slices.Index(tickOutcomes, outcome); i >= 0 {
		s.ticks[i].Add(n)
	}
}

// histogram counts durations in buckets.
type histogram struct {
	buckets [len(bucketBounds)]atomic.Int64 // not cumulative
	count   atomic.Int64
	nanos   atomic.Int64
}

// bucketBounds are the upper bounds, from a fast disk's fsync to an election.
var bucketBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, time.Second, 5 * time.Second,
}

func (h *histogram) observe(d time.Duration) {
	for i, bound := range bucketBounds {
		if d <= bound {
			h.buckets[i].Add(1)
			break
		}
	}
	h.count.Add(1)
	h.nanos.Add(int64(d))
}

// gauges are what is so now, read by whoever asks for the numbers.
type gauges struct {
	Jobs        int
	Running     int           // executions on this node, those that wait for their start included
	Undelivered int           // results on this node that no leader has acknowledged
	Lag         time.Duration // how long the earliest due tick has been waiting for the leader; 0 on other servers
	Leading     bool
	Refused     map[string]int64 // messages of other nodes, by reason
}

// write writes all numbers in Prometheus' text format.
func (s *stats) write(w io.Writer, g gauges) {
	p := printer{w}
	leading := 0.0
	if g.Leading {
		leading = 1
	}
	p.metric("belfry_leader", "gauge", "1 if this server leads.", "", leading)
	p.metric("belfry_jobs", "gauge", "Jobs in the cluster.", "", float64(g.Jobs))
	p.metric("belfry_executions_running", "gauge", "Executions on this node that have not ended.", "", float64(g.Running))
	p.metric("belfry_results_undelivered", "gauge", "Results on this node that no leader has acknowledged.", "", float64(g.Undelivered))
	p.metric("belfry_due_lag_seconds", "gauge", "How long the earliest due tick has been waiting for this leader.", "", g.Lag.Seconds())
	p.counters("belfry_runs_total", "Executions that this leader has put on record as ended, by outcome.", runOutcomes, &s.runs)
	p.counters("belfry_ticks_total", "Ticks that this leader has decided, by outcome.", tickOutcomes, &s.ticks)
	p.histogram("belfry_commit_seconds", "From the proposal of a change by this leader to its application.", &s.commits)
	p.head("belfry_plane_refused_total", "counter", "Messages of other nodes that this node refused or dropped, by reason.")
	for _, reason := range sortedKeys(g.Refused) {
		p.value("belfry_plane_refused_total", fmt.Sprintf("{reason=%q}", reason), float64(g.Refused[reason]))
	}
	p.runtime()
}

// printer writes metrics. Errors of w are for its owner to see.
type printer struct{ w io.Writer }

func (p printer) head(name, kind, help string) {
	fmt.Fprintf(p.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p printer) metric(name, kind, help, labels string, v float64) {
	p.head(name, kind, help)
	p.value(name, labels, v)
}

func (p printer) value(name, labels string, v float64) {
	fmt.Fprintf(p.w, "%s%s %s\n", name, labels, strconv.FormatFloat(v, 'g', -1, 64))
}

func (p printer) counters(name, help string, labels []string, by *countBy) {
	p.head(name, "counter", help)
	for i, l := range labels {
		p.value(name, fmt.Sprintf("{outcome=%q}", l), float64(by[i].Load()))
	}
}

func (p printer) histogram(name, help string, h *histogram) {
	p.head(name, "histogram", help)
	var below int64
	for i, bound := range bucketBounds {
		below += h.buckets[i].Load()
		p.value(name+"_bucket", fmt.Sprintf("{le=\"%g\"}", bound.Seconds()), float64(below))
	}
	n := max(below, h.count.Load()) // read while others count
	p.value(name+"_bucket", `{le="+Inf"}`, float64(n))
	p.value(name+"_sum", "", time.Duration(h.nanos.Load()).Seconds())
	p.value(name+"_count", "", float64(n))
}

// goMetrics are the numbers of the Go runtime, under the names that
// Prometheus' own client gives them.
var goMetrics = []struct{ name, kind, help, source string }{
	{"go_goroutines", "gauge", "Goroutines that exist.", "/sched/goroutines:goroutines"},
	{"go_memstats_heap_alloc_bytes", "gauge", "Bytes in live and not yet swept heap objects.", "/memory/classes/heap/objects:bytes"},
	{"go_memstats_sys_bytes", "gauge", "Bytes obtained from the system.", "/memory/classes/total:bytes"},
	{"go_gc_cycles_total", "counter", "Garbage collections that are done.", "/gc/cycles/total:gc-cycles"},
}

func (p printer) runtime() {
	samples := make([]metrics.Sample, len(goMetrics))
	for i, m := range goMetrics {
		samples[i].Name = m.source
	}
	metrics.Read(samples)
	for i, m := range goMetrics {
		v := math.NaN() // a runtime that does not know the number
		if samples[i].Value.Kind() == metrics.KindUint64 {
			v = float64(samples[i].Value.Uint64())
		}
		p.metric(m.name, m.kind, m.help, "", v)
	}
	p.metric("go_info", "gauge", "The Go version that this program was built with.", fmt.Sprintf("{version=%q}", runtime.Version()), 1)
}
