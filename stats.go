// Stats owns what this process has observed since it started: its counters and their Prometheus text, the events that
// clients of /v1/events receive, what /proc says about the machine's processes, and how receivers are told of what
// happened. It makes no decisions.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/mail"
	"net/smtp"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/template"
	"time"
)

// stats are the counters of this process. The zero value is ready to use; its methods are safe for concurrent use.
type stats struct {
	runs    countBy   // executions that ended, by outcome
	ticks   countBy   // ticks that were decided, by outcome
	whys    countBy   // ticks that did not run, by why
	commits histogram // from proposing a command to applying it

	told   atomic.Int64 // notices that receivers took
	untold atomic.Int64 // notices that were given up
}

// countBy holds one counter for each of at most eight labels.
type countBy [8]atomic.Int64

// Outcomes of a tick.
const (
	outcomeRan     = "ran"
	outcomeLate    = "late" // it ran, caught up after an outage
	outcomeSkipped = "skipped"
	outcomeMissed  = "missed"
)

// The labels; each is counted at its index in a countBy.
var (
	runOutcomes  = []string{outcomeSuccess, outcomeFailed, outcomeKilled, outcomeInterrupted, outcomeLost}
	tickOutcomes = []string{outcomeRan, outcomeLate, outcomeSkipped, outcomeMissed}

	tickWhys = []string{"overlap", "no_node", "outage", "held", "calendar", "full", "other"}

	refusalReasons = []string{refusedToken, refusedForbidden, refusedHost, refusedOrigin}

	// Messages of other nodes: "dropped" for want of room in a queue, "key" for a caller with another cluster key, the
	// others are refusal codes.
	planeReasons = []string{"dropped", "foreign", "format", "key", "malformed", "misdirected", "too_large"}
)

// Why a client's request is refused.
const (
	refusedToken     = "token"     // 401: no token, or an invalid one
	refusedForbidden = "forbidden" // 403: the token does not grant it
	refusedHost      = "host"      // 421: Host names another server
	refusedOrigin    = "origin"    // 403: sent by a page of another origin
)

// ran counts an execution that ended.
func (s *stats) ran(outcome string) {
	if i := slices.Index(runOutcomes, outcome); i >= 0 {
		s.runs[i].Add(1)
	}
}

// decided counts n ticks with that outcome; reason is why they did not run, if they did not.
func (s *stats) decided(outcome, reason string, n int64) {
	if i := slices.Index(tickOutcomes, outcome); i >= 0 {
		s.ticks[i].Add(n)
	}
	if outcome == outcomeSkipped || outcome == outcomeMissed {
		s.whys[slices.Index(tickWhys, whyNotRun(reason))].Add(n)
	}
}

// reasonWords classify the reason why a tick did not run, by a part of it; the first that matches counts. A reason is
// matched with a newline before it. Those that quote an operator's words stand first.
var reasonWords = []struct{ words, why string }{
	{"\nheld by ", "held"}, {"\ncalendar ", "calendar"},
	{"overlap", "overlap"}, {"retry of an earlier run", "overlap"}, {"mutex", "overlap"}, {"took its place", "overlap"},
	{"no node", "no_node"}, {"no leader until", "outage"}, {"the leader was more than", "outage"},
	{"later ticks were due", "outage"}, {"at once", "full"}, {" for node ", "no_node"},
}

func whyNotRun(reason string) string {
	for _, r := range reasonWords {
		if strings.Contains("\n"+reason, r.words) {
			return r.why
		}
	}
	return "other"
}

const (
	reminderPause = time.Minute // at least, between two log lines about one subject
	remindersMax  = 1_000       // subjects logged within that time; bounds the map and the log
	failuresMax   = 20          // failed runs that are logged in a second
)

// reminders say when to log what goes on: at once, and then each minute. The zero value is ready to use; its methods
// are safe for concurrent use.
type reminders struct {
	mu     sync.Mutex
	logged map[string]time.Time // subject → time of its last log line; guarded by mu
}

// due reports whether to log a line about subject.
func (r *reminders) due(subject string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.logged == nil {
		r.logged = map[string]time.Time{}
	}
	if at, ok := r.logged[subject]; ok && now.Sub(at) < reminderPause {
		return false
	}
	if len(r.logged) >= remindersMax {
		maps.DeleteFunc(r.logged, func(_ string, at time.Time) bool { return now.Sub(at) >= reminderPause })
	}
	if len(r.logged) >= remindersMax {
		return false
	}
	r.logged[subject] = now
	return true
}

// over forgets what no longer goes on, and reports whether it was logged.
func (r *reminders) over(subject string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.logged[subject]
	delete(r.logged, subject)
	return ok
}

// refusals counts refused requests. The zero value is ready to use; its methods are safe for concurrent use.
type refusals struct {
	counts countBy
	reminders
}

// add counts a refusal and reports whether to log the address.
func (r *refusals) add(reason, addr string, now time.Time) bool {
	r.counts[slices.Index(refusalReasons, reason)].Add(1)
	return r.due(addr, now)
}

// failureLog logs executions that did not succeed: up to failuresMax in a second, and then the number of others. Its
// methods are safe for concurrent use.
type failureLog struct {
	log *slog.Logger

	mu   sync.Mutex
	said int // executions in this second; guarded by mu
}

// add logs one. A nil log logs nothing.
func (l *failureLog) add(job, execution, outcome string, reason []byte, attempt int) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said++; l.said <= failuresMax {
		l.log.Info("a job failed", "job", job, "execution", execution, "outcome", outcome,
			"reason", strings.TrimSpace(string(reason)), "attempt", attempt)
	}
	if l.said > 1 {
		return
	}
	time.AfterFunc(time.Second, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.said > failuresMax {
			l.log.Info("more jobs failed in this second", "executions", l.said-failuresMax)
		}
		l.said = 0
	})
}

// A diskLimit tells when a disk is nearly full: with less free than one in so many bytes, or than so many.
type diskLimit struct{ share, free uint64 }

// Of the disk of the data directory.
var (
	diskShort = diskLimit{10, 1 << 30}   // receivers are told
	diskFull  = diskLimit{20, 200 << 20} // so is who asks for the node's health
)

// disk returns the bytes that are free for this user on the file system of dir, and its size; 0 if it is not known.
func disk(dir string) (free, size uint64) {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0, 0
	}
	return uint64(st.Bavail) * uint64(st.Bsize), uint64(st.Blocks) * uint64(st.Bsize)
}

// problem says that a disk is nearly full, "" if it is not.
func (l diskLimit) problem(dir string, free, size uint64) string {
	if size == 0 || free >= l.free && free >= size/l.share {
		return ""
	}
	return fmt.Sprintf("the disk of %s is nearly full, less than %d %% or %d MB are free: make room before writes fail",
		dir, 100/l.share, l.free>>20)
}

// histogram counts durations in buckets.
type histogram struct {
	buckets [len(bucketBounds)]atomic.Int64 // not cumulative
	count   atomic.Int64
	nanos   atomic.Int64
}

// bucketBounds are inclusive upper bounds, from a fast disk's fsync to an election.
var bucketBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
	250 * time.Millisecond, time.Second, 5 * time.Second,
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

// gauges are current values, collected for one response.
type gauges struct {
	Version     string
	Jobs        int
	Running     int           // executions on this node, including those not yet started
	Undelivered int           // results on this node that no leader has acknowledged
	Lag         time.Duration // how long the earliest due tick has been waiting for the leader; 0 on other servers
	Leading     bool
	LeaderKnown bool
	Term        uint64
	Members     map[string]int // by status
	Voters      int
	Answering   int           // voters that have not failed
	Clocks      time.Duration // largest difference of another server's clock to this one
	Free, Size  uint64        // bytes of the disk
	Notices     int           // that wait for their receivers
	Refused     *countBy      // messages from other nodes, by planeReasons
	Requests    *refusals     // from clients
	Shown       []jobNumbers
}

// jobNumbers are what is on record of one job.
type jobNumbers struct {
	Name                       string
	Failing                    bool
	LastSuccess                int64  // Unix nanoseconds, 0: never
	Success, Failed            int64  // executions
	Took                       int64  // nanoseconds, of the last execution that has ended; -1: none has
	Oldest                     int64  // Unix nanoseconds: when the oldest running one began; 0: none runs
	Ran, Late, Skipped, Missed int64  // ticks
	MaxRuntime, MaxSilence     string // durations, "": none
}

// memberStatus has the names of the values of member.Status.
var memberStatus = []string{"none", "alive", "leaving", "left", "failed"}

// jobMetrics are the metrics of one job. Those of one name differ in their outcome, and the first has the help.
var jobMetrics = [...]struct{ name, outcome, help string }{
	{"belfry_job_failing", "", "1 if the last run failed on a node, after its last attempt."},
	{"belfry_job_last_success_timestamp_seconds", "", "When an execution succeeded last."},
	{"belfry_job_last_duration_seconds", "", "How long the last execution that has ended took."},
	{"belfry_job_oldest_running_timestamp_seconds", "", "When the oldest running execution began."},
	{"belfry_job_max_runtime_seconds", "", "The job's max_runtime."},
	{"belfry_job_max_silence_seconds", "", "The job's max_silence."},
	{"belfry_job_runs_total", outcomeSuccess, "Executions that ended, by outcome."},
	{"belfry_job_runs_total", outcomeFailed, ""},
	{"belfry_job_ticks_total", outcomeRan,
		"Ticks since the job was made, by outcome; one that ran counts when it has ended."},
	{"belfry_job_ticks_total", outcomeLate, ""},
	{"belfry_job_ticks_total", outcomeSkipped, ""},
	{"belfry_job_ticks_total", outcomeMissed, ""},
	{"dkron_job_executions_succeeded_total", "", "As belfry_job_runs_total, with Dkron's name."},
	{"dkron_job_executions_failed_total", "", "As belfry_job_runs_total, with Dkron's name."},
}

// values are those of jobMetrics, in its order. One that is NaN is left out.
func (j *jobNumbers) values() [len(jobMetrics)]float64 {
	return [...]float64{
		oneIf(j.Failing), secondsOf(j.LastSuccess, 0), secondsOf(j.Took, -1), secondsOf(j.Oldest, 0),
		limitOf(j.MaxRuntime), limitOf(j.MaxSilence), float64(j.Success), float64(j.Failed),
		float64(j.Ran), float64(j.Late), float64(j.Skipped), float64(j.Missed), float64(j.Success), float64(j.Failed),
	}
}

func oneIf(ok bool) float64 {
	if ok {
		return 1
	}
	return 0
}

// secondsOf returns NaN for none.
func secondsOf(nanos, none int64) float64 {
	if nanos == none {
		return math.NaN()
	}
	return float64(nanos) / 1e9
}

func limitOf(text string) float64 {
	d, err := time.ParseDuration(text)
	if err != nil { // it has none
		return math.NaN()
	}
	return d.Seconds()
}

// write writes all metrics in Prometheus' text format.
func (s *stats) write(w io.Writer, g gauges) {
	p := &printer{w: w}
	one, by := p.metric, p.counters
	one("belfry_build_info", "Version of this build.", 1, "version", g.Version, "go", runtime.Version())
	one("belfry_leader", "1 if this server leads.", oneIf(g.Leading))
	one("belfry_leader_known", "1 if this server knows a leader.", oneIf(g.LeaderKnown))
	one("belfry_term", "Term of the cluster, which grows with each election.", float64(g.Term))
	for _, status := range memberStatus[1:] {
		one("belfry_members", "Nodes, by status.", float64(g.Members[status]), "status", status)
	}
	one("belfry_voters", "Servers that vote.", float64(g.Voters))
	one("belfry_voters_answering", "Servers that vote and have not failed.", float64(g.Answering))
	one("belfry_voters_needed", "Servers that vote and must answer.", float64(g.Voters/2+1))
	one("belfry_clock_difference_seconds", "Largest difference of another server's clock to this one's.",
		g.Clocks.Seconds())
	one("belfry_disk_free_bytes", "Free on the disk of the data directory.", float64(g.Free))
	one("belfry_disk_size_bytes", "Size of the disk of the data directory.", float64(g.Size))
	one("belfry_jobs", "Jobs in the cluster.", float64(g.Jobs))
	one("belfry_jobs_without_metrics", "Jobs beyond --metrics-jobs, or that the token may not read.",
		float64(g.Jobs-len(g.Shown)))
	one("belfry_executions_running", "Executions on this node that have not ended.", float64(g.Running))
	one("belfry_results_undelivered", "Results on this node that no leader has acknowledged.", float64(g.Undelivered))
	one("belfry_due_lag_seconds", "How long the earliest due tick has been waiting for this leader.", g.Lag.Seconds())
	by("belfry_runs_total", "Executions that ended since this server started, by outcome.", "outcome", runOutcomes,
		&s.runs)
	by("belfry_ticks_total", "Ticks decided since this server started, by outcome.", "outcome", tickOutcomes,
		&s.ticks)
	by("belfry_ticks_not_run_total", "Ticks that did not run since this server started, by why.", "why", tickWhys,
		&s.whys)
	by("belfry_requests_refused_total", "Client requests that this node refused, by reason.", "reason", refusalReasons,
		&g.Requests.counts)
	one("belfry_notices_waiting", "Notices that wait for their receivers.", float64(g.Notices))
	one("belfry_notices_delivered_total", "Notices that receivers took since this server started.",
		float64(s.told.Load()))
	one("belfry_notices_lost_total", "Notices given up since this server started.", float64(s.untold.Load()))
	by("belfry_plane_refused_total", "Messages from other nodes that this node refused or dropped, by reason.",
		"reason", planeReasons, g.Refused)
	p.jobs(g.Shown)
	p.histogram("belfry_commit_seconds", "Time from proposing a change on this leader to applying it.", &s.commits)
	p.runtime()
}

// printer writes metrics. It ignores write errors: the caller owns w.
type printer struct {
	w    io.Writer
	last string // name of the metric
}

func (p *printer) head(name, kind, help string) {
	if name != p.last {
		fmt.Fprintf(p.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	p.last = name
}

// metric writes a value, unless it is NaN, with labels: names and values in turn. What ends in _total is a counter.
func (p *printer) metric(name, help string, v float64, labels ...string) {
	if math.IsNaN(v) {
		return
	}
	kind, list := "gauge", []string{}
	if strings.HasSuffix(name, "_total") {
		kind = "counter"
	}
	for pair := range slices.Chunk(labels, 2) {
		list = append(list, fmt.Sprintf("%s=%q", pair[0], pair[1]))
	}
	p.head(name, kind, help)
	p.value(name, strings.Join(list, ","), v)
}

func (p *printer) value(name, labels string, v float64) {
	if labels != "" {
		labels = "{" + labels + "}"
	}
	fmt.Fprintf(p.w, "%s%s %s\n", name, labels, strconv.FormatFloat(v, 'g', -1, 64))
}

func (p *printer) jobs(list []jobNumbers) {
	values := make([][len(jobMetrics)]float64, len(list))
	for i := range list {
		values[i] = list[i].values()
	}
	for k, m := range jobMetrics {
		for i := range list {
			labels := []string{"job_name", list[i].Name, "outcome", m.outcome}
			if m.outcome == "" {
				labels = labels[:2]
			}
			p.metric(m.name, m.help, values[i][k], labels...)
		}
	}
}

func (p *printer) counters(name, help, label string, labels []string, by *countBy) {
	for i, l := range labels {
		p.metric(name, help, float64(by[i].Load()), label, l)
	}
}

func (p *printer) histogram(name, help string, h *histogram) {
	p.head(name, "histogram", help)
	var below int64
	for i, bound := range bucketBounds {
		below += h.buckets[i].Load()
		p.value(name+"_bucket", fmt.Sprintf("le=\"%g\"", bound.Seconds()), float64(below))
	}
	n := max(below, h.count.Load()) // observe may run meanwhile; the +Inf bucket must not be below the others
	p.value(name+"_bucket", `le="+Inf"`, float64(n))
	p.value(name+"_sum", "", time.Duration(h.nanos.Load()).Seconds())
	p.value(name+"_count", "", float64(n))
}

// goMetrics are metrics of the Go runtime, under the names that the Prometheus client library uses.
var goMetrics = []struct{ name, help, source string }{
	{"go_goroutines", "Goroutines that exist.", "/sched/goroutines:goroutines"},
	{"go_memstats_heap_alloc_bytes", "Bytes in live and not yet swept heap objects.",
		"/memory/classes/heap/objects:bytes"},
	{"go_memstats_sys_bytes", "Bytes obtained from the system.", "/memory/classes/total:bytes"},
	{"go_gc_cycles_total", "Garbage collections that are done.", "/gc/cycles/total:gc-cycles"},
}

func (p *printer) runtime() {
	samples := make([]metrics.Sample, len(goMetrics))
	for i, m := range goMetrics {
		samples[i].Name = m.source
	}
	metrics.Read(samples)
	for i, m := range goMetrics {
		if samples[i].Value.Kind() == metrics.KindUint64 { // else it is unknown to this runtime
			p.metric(m.name, m.help, float64(samples[i].Value.Uint64()))
		}
	}
	p.metric("go_info", "Go version of this build.", 1, "version", runtime.Version())
}

// samplesOf yields the names with labels, and the values, of metrics in Prometheus' text format.
func samplesOf(text string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for line := range strings.Lines(text) {
			name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
			if ok && name != "#" && !yield(name, value) {
				return
			}
		}
	}
}

const (
	metricsJobsMax = 100_000          // jobs that have metrics of their own
	statsdPause    = 10 * time.Second // between two reports, as Dkron
	statsdBytes    = 1_400            // of a packet, which fits into an Ethernet frame
)

// statsd says where metrics are sent. The zero value is nowhere.
type statsd struct {
	Addr string
	Dog  string   // takes tags
	Tags []string // for Dog, as name:value
}

var labelForm = regexp.MustCompile(`(\w+)="([^"]*)",?`)

// line returns a metric as one of the two servers reads it: a gauge, with labels as parts of the name or as tags.
func (c *statsd) line(name, value string, dog bool) string {
	name, labels, _ := strings.Cut(name, "{")
	if !dog {
		return name + strings.TrimSuffix(labelForm.ReplaceAllString(labels, ".$2"), "}") + ":" + value + "|g\n"
	}
	tags := slices.Clone(c.Tags)
	for _, label := range labelForm.FindAllStringSubmatch(labels, -1) {
		tags = append(tags, label[1]+":"+label[2])
	}
	return name + ":" + value + "|g|#" + strings.Join(tags, ",") + "\n"
}

// report sends metrics in Prometheus' text format. What is lost on the way is sent again with the next report.
func (c *statsd) report(text string) {
	c.send(c.Addr, text, false)
	c.send(c.Dog, text, true)
}

func (c *statsd) send(addr, text string, dog bool) {
	conn, err := net.Dial("udp", addr)
	if addr == "" || err != nil {
		return
	}
	defer conn.Close()
	packet := ""
	for name, value := range samplesOf(text) {
		line := c.line(name, value, dog)
		if len(packet)+len(line) > statsdBytes {
			io.WriteString(conn, packet)
			packet = ""
		}
		packet += line
	}
	io.WriteString(conn, packet)
}

const (
	watchersMax = 1_000                  // clients at once
	windowTime  = 250 * time.Millisecond // at least, between two closed windows
	windowMarks = 1_000                  // in one window; with more it is sent as one eventReload
	windowsKept = 8                      // at least two seconds, for slow clients
)

// Types of events.
const (
	eventHello   = "hello"
	eventJob     = "job" // its definition changed
	eventStarted = "started"
	eventEnded   = "ended"
	eventPaused  = "paused"
	eventLeader  = "leader"
	eventMembers = "members"
	eventReload  = "reload" // events were dropped; read everything again
	eventAlive   = "alive"
)

// An event is one line of the response to GET /v1/events.
type event struct {
	Type      string  `json:"type"`
	Node      string  `json:"node,omitempty"`
	Leader    *string `json:"leader,omitempty"`
	Job       string  `json:"job,omitempty"`
	Execution string  `json:"execution,omitempty"`
	Outcome   string  `json:"outcome,omitempty"`
	Attempt   int     `json:"attempt,omitempty"`
	Last      bool    `json:"last,omitempty"` // of eventEnded: no other attempt follows
	Paused    *bool   `json:"paused,omitempty"`
}

// A mark records that a row of a job or an execution changed.
type mark struct {
	what string // the type of the event
	row  int64
}

// events passes the marks of apply on to watchers. It collects them in windows that all watchers share, so neither the
// number of watchers nor their speed slows apply down: it appends a few words, and nothing while nobody watches. A
// watcher that is more than windowsKept windows late gets an eventReload. The zero value is ready to use; its methods
// are safe for concurrent use.
type events struct {
	watchers atomic.Int64

	mu     sync.Mutex
	open   *window              // collects marks; nil: none since the last window; guarded by mu
	kept   [windowsKept]*window // window n at n % windowsKept; guarded by mu
	count  uint64               // closed windows; guarded by mu
	closed time.Time            // when the last window was closed; guarded by mu
	more   chan struct{}        // closed with the next window; nil if nobody waits; guarded by mu
}

// A window holds the marks of a short time. It is immutable once closed.
type window struct {
	marks []mark
	full  bool // marks were dropped, or anything may have changed

	names  sync.Once // the first reader looks up the names
	events []event
	err    error
}

// watched reports whether there are watchers.
func (e *events) watched() bool { return e.watchers.Load() > 0 }

// enter registers a watcher and returns the number of the next window; ok is false if there are watchersMax already.
// After ok the caller must call leave.
func (e *events) enter() (next uint64, ok bool) {
	if e.watchers.Add(1) > watchersMax {
		e.leave()
		return 0, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count, true
}

func (e *events) leave() { e.watchers.Add(-1) }

// publish adds marks to the open window and closes it once windowTime has passed since the last. full means that the
// marks do not cover every change.
func (e *events) publish(marks []mark, full bool) {
	if !e.watched() || len(marks) == 0 && !full {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	begins := e.open == nil
	if begins {
		e.open = &window{}
	}
	if e.open.full = e.open.full || full || len(e.open.marks)+len(marks) > windowMarks; !e.open.full {
		e.open.marks = append(e.open.marks, marks...)
	}
	if wait := windowTime - time.Since(e.closed); wait <= 0 {
		e.closeLocked()
	} else if begins {
		time.AfterFunc(wait, e.close)
	}
}

func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closeLocked()
}

func (e *events) closeLocked() {
	if e.open == nil { // publish has closed it before the timer fired
		return
	}
	e.kept[e.count%windowsKept] = e.open
	e.count, e.open, e.closed = e.count+1, nil, time.Now()
	if e.more != nil {
		close(e.more)
		e.more = nil
	}
}

// since returns the windows from number next on, the number after the last one, and a channel that is closed with the
// next window. If some of them are no longer kept, it returns a single full window instead.
func (e *events) since(next uint64) (list []*window, end uint64, more <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count-next > windowsKept {
		list = []*window{{full: true}}
	} else {
		for n := next; n < e.count; n++ {
			list = append(list, e.kept[n%windowsKept])
		}
	}
	if e.more == nil {
		e.more = make(chan struct{})
	}
	return list, e.count, e.more
}

// read returns the events of the window; names is called once, by the first reader.
func (w *window) read(names func([]mark) ([]event, error)) ([]event, error) {
	w.names.Do(func() { w.events, w.err = names(w.marks) })
	return w.events, w.err
}

// ---- Processes of the machine

// proc is what /proc says about a live process.
type proc struct {
	pid, group, session int
	command             string
	forked              bool // forked, but has not called exec yet
	hangs               bool // in an uninterruptible system call
	pages               int64
	start               int    // in clock ticks since boot, a hundredth of a second each
	execution           string // of this node, from its environment or that of another process of its session
}

// readProcs returns the processes outside our own session, with the execution that the node with that id started them
// for. It returns none where there is no /proc, and no execution where the environment cannot be read.
func readProcs(nodeID string) (found []proc) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only on a bad pattern
	executions, own := map[int]string{}, readProc(os.Getpid()).session
	mark := []byte("\x00BELFRY_NODE_ID=" + nodeID + "\x00")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		p := readProc(pid)
		if p.session == 0 || p.session == own { // 0: ended, or outside our namespace
			continue
		}
		var environ []byte
		if !p.hangs { // or reading its memory could hang as well
			environ, _ = os.ReadFile(filepath.Join(dir, "environ")) // fails for another user's process
		}
		if environ = append([]byte{0}, environ...); bytes.Contains(environ, mark) {
			_, id, _ := bytes.Cut(environ, []byte("\x00BELFRY_EXECUTION="))
			id, _, _ = bytes.Cut(id, []byte("-"))
			executions[p.session] = string(id)
		}
		found = append(found, p)
	}
	for i, p := range found {
		found[i].execution = executions[p.session]
	}
	return found
}

// readProc reads /proc/PID/stat. It returns the zero value if the process has ended.
func readProc(pid int) proc {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	p, _ := parseStat(stat)
	return p
}

// parseStat parses the format of proc_pid_stat(5); ok is false if the process has ended. The second field, the
// program's name in parentheses, may contain anything.
func parseStat(stat []byte) (p proc, ok bool) {
	end := max(0, bytes.LastIndexByte(stat, ')'))
	pid, command, _ := bytes.Cut(stat[:end], []byte(" ("))
	fields := bytes.Fields(stat[end:])
	if len(fields) < 23 || fields[1][0] == 'Z' || fields[1][0] == 'X' {
		return p, false
	}
	number := func(b []byte) int {
		n, _ := strconv.Atoi(string(b)) // the kernel writes numbers
		return n
	}
	const forkNoExec = 0x40 // PF_FORKNOEXEC
	return proc{
		pid: number(pid), command: string(command), group: number(fields[3]), session: number(fields[4]),
		forked: number(fields[7])&forkNoExec != 0, hangs: fields[1][0] == 'D',
		start: number(fields[20]), pages: int64(number(fields[22])),
	}, true
}

// uptime reads the time since boot, at most once a second. The zero value is ready, and safe for concurrent use.
type uptime struct {
	mu   sync.Mutex
	read time.Time
	last int // ticks
}

// soon returns a time up to two seconds ahead, in clock ticks since boot: every running process started before it, and
// no pid is reused that fast. Reading the start time of a new process instead takes a tenth of the CPU time of a short
// run.
func (u *uptime) soon() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); u.last == 0 || now.Sub(u.read) > time.Second {
		text, _ := os.ReadFile("/proc/uptime")
		seconds, _, _ := strings.Cut(string(text), ".")
		u.last, _ = strconv.Atoi(seconds)
		u.read, u.last = now, (u.last+2)*100
	}
	return u.last
}

// names lists processes by pid, user and command.
func names(list []proc) string {
	var texts []string
	for _, p := range list {
		owner := "?"
		if info, err := os.Stat("/proc/" + strconv.Itoa(p.pid)); err == nil {
			owner = fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid)
		}
		if u, err := user.LookupId(owner); err == nil {
			owner = u.Username
		}
		texts = append(texts, fmt.Sprintf("%d (%s, %s)", p.pid, owner, p.command))
	}
	return strings.Join(texts, ", ")
}

// sortedKeys returns the keys of m in order, for what must not depend on the order of a map.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}

// ---- Notices

const (
	noticeTimeout    = 10 * time.Second // for one attempt to deliver
	noticeSends      = 256              // attempts at once
	noticeSendsPer   = 8                // of these to one receiver: if it hangs, the others do not wait
	noticeReadMax    = 64 << 10         // bytes of a response that are read
	noticeLinesBytes = 300              // of an output in a text
	subjectBytes     = 200
)

// Events that receivers are told of.
const (
	eventStart      = "start"
	eventEnd        = "end"
	eventFailed     = "failed" // a group of executions ended without success, after its last retry
	eventRecovered  = "recovered"
	eventMissed     = "missed"  // ticks did not run because of an outage, or for want of a node
	eventOverdue    = "overdue" // a run goes on, or there is no success, for too long
	eventOverrun    = "overrun" // a fifth of a day's ticks were skipped because an earlier run went on
	eventLost       = "lost"
	eventNewLeader  = "leader"
	eventNodeFailed = "node-failed"
	eventNodeBack   = "node-back"
	eventNoSpare    = "no-majority-to-spare" // the cluster stops with the next voter
	eventDisk       = "disk"
	eventClock      = "clock"
)

// jobEvents are about a job, clusterEvents about none.
var (
	jobEvents = []string{eventStart, eventEnd, eventFailed, eventRecovered, eventMissed, eventOverdue, eventOverrun,
		eventLost}
	clusterEvents = []string{eventNewLeader, eventNodeFailed, eventNodeBack, eventNoSpare, eventDisk, eventClock}
	// noticesDefault are those of --notify-on.
	noticesDefault = slices.Concat(jobEvents[2:], clusterEvents[1:])
)

// Receivers. Those that the operator names are called after their flags; the others have an address.
const (
	receiverNotify    = "notify-webhook"
	receiverPost      = "webhook-endpoint"
	receiverPre       = "pre-webhook-endpoint"
	receiverCronitor  = "cronitor-endpoint"
	receiverHeartbeat = "heartbeat-url" // called without a notice
	receiverURL       = "webhook "
	receiverMail      = "mail "
	receiverOwner     = "owner " // by mail, if the address is allowed
	receiverSlack     = "slack " // team and channel
)

// A notice says what happened. Its JSON is what a webhook receives.
type notice struct {
	Event     string    `json:"event"`
	Text      string    `json:"text,omitempty"` // made when it is delivered, as are Links
	Job       string    `json:"job,omitempty"`
	Execution string    `json:"execution,omitempty"`
	Group     int64     `json:"group,omitempty"`
	Node      string    `json:"node,omitempty"`
	Attempt   int       `json:"attempt,omitempty"`
	Outcome   string    `json:"outcome,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Output    string    `json:"output,omitempty"` // its end
	Due       time.Time `json:"due,omitzero"`     // of missed ticks the first
	Until     time.Time `json:"until,omitzero"`   // of missed ticks the last
	Count     int64     `json:"count,omitempty"`  // of missed ticks
	Started   time.Time `json:"started_at,omitzero"`
	Finished  time.Time `json:"finished_at,omitzero"`
	Links     *links    `json:"links,omitempty"`

	whole string // output, for templates
}

type links struct {
	Job       string `json:"job"`
	Execution string `json:"execution,omitempty"`
}

// text says in words what happened.
func (n *notice) text() string {
	on := ""
	if n.Node != "" {
		on = " on " + n.Node
	}
	if n.Attempt > 1 {
		on += fmt.Sprintf(", attempt %d", n.Attempt)
	}
	what := map[string]string{
		eventStart: "started" + on, eventEnd: "ended" + on + ": " + n.Outcome, eventFailed: "failed" + on,
		eventRecovered: "succeeded again" + on, eventLost: "was lost" + on, eventMissed: "missed its run" + on,
		eventOverdue: "is overdue" + on, eventOverrun: "overruns its schedule",
	}[n.Event]
	if n.Event == eventMissed && n.Count > 0 {
		due, until := n.Due.Format(time.RFC3339), n.Until.Format(time.RFC3339)
		what = fmt.Sprintf("missed %d ticks, due from %s to %s", n.Count, due, until)
	}
	text := cmp.Or(n.Job, "belfry") + strings.TrimRight(" "+what, " ")
	if n.Reason != "" {
		text += ": " + n.Reason
	}
	output := strings.TrimSpace(n.Output[max(0, len(n.Output)-noticeLinesBytes):])
	if output != "" && n.Event != eventRecovered {
		text += "\n" + strings.ToValidUTF8(output, "")
	}
	return text
}

// notifyConfig says whom the operator wants told of what.
type notifyConfig struct {
	Webhook   hook
	Post, Pre hook // for each end and start
	Cronitor  hook
	Slack     map[string]string // team → URL
	Heartbeat hook              // that the leader calls each minute
	Mail      mailConfig
	Page      string // URL of the page, for links
}

// A hook is a webhook with a template for its body, as in Dkron.
type hook struct {
	URL, Payload string
	On, Headers  []string // events; headers as "Name: value"
	payload      *template.Template
	header       http.Header
}

type mailConfig struct {
	Host, Username, Password, From, Prefix, Payload string
	Port                                            uint
	Domains                                         []string // to which mail goes; nil: that of From

	payload *template.Template // nil: the text
	from    *mail.Address
	roots   *x509.CertPool // nil: those of the system
}

// hooks are the receivers that the operator may name, by their flags.
func (c *notifyConfig) hooks() map[string]*hook {
	return map[string]*hook{receiverNotify: &c.Webhook, receiverPost: &c.Post, receiverPre: &c.Pre,
		receiverCronitor: &c.Cronitor, receiverHeartbeat: &c.Heartbeat}
}

// validate fills in what was not given. The error names the flag.
func (c *notifyConfig) validate() (err error) {
	if c.Webhook.On == nil {
		c.Webhook.On = noticesDefault
	}
	c.Post.On, c.Pre.On, c.Cronitor.On = []string{eventEnd}, []string{eventStart}, []string{eventStart, eventEnd}
	if err := checkEvents(c.Webhook.On, slices.Concat(jobEvents, clusterEvents)); err != nil {
		return fmt.Errorf("--notify-on: %w", err)
	}
	hooks := c.hooks()
	for _, name := range sortedKeys(hooks) {
		h := hooks[name]
		if err := checkReceiverURL(h.URL); err != nil && h.URL != "" {
			return fmt.Errorf("--%s: %w", name, err)
		}
		if h.payload, err = parsePayload(h.Payload); err != nil {
			return fmt.Errorf("--%s: %w", strings.Replace(name, "endpoint", "payload", 1), err)
		}
		doc, _ := json.Marshal(h.Headers) // strings always marshal
		if h.header, err = requestHeaders(map[string]string{"headers": string(doc)}); err != nil {
			return fmt.Errorf(`--%s: an entry is not "Name: value"`, strings.Replace(name, "endpoint", "headers", 1))
		}
	}
	for _, team := range sortedKeys(c.Slack) {
		if err := checkReceiverURL(c.Slack[team]); err != nil {
			return fmt.Errorf("--slack-webhook %s: %w", team, err)
		}
	}
	m := &c.Mail
	if m.payload, err = parsePayload(m.Payload); err != nil {
		return fmt.Errorf("--mail-payload: %w", err)
	}
	if m.Host == "" {
		return nil
	}
	if m.from, err = mail.ParseAddress(m.From); err != nil {
		return fmt.Errorf("--mail-from: %q must be an address such as belfry@example.org", m.From)
	}
	if m.Domains == nil {
		m.Domains = []string{domainOf(m.from.Address)}
	}
	return nil
}

// parsePayload parses a template and tries it.
func parsePayload(text string) (*template.Template, error) {
	t, err := template.New("payload").Parse(text)
	if err == nil {
		err = t.Execute(io.Discard, templateValues{})
	}
	return t, err
}

// templateValues are what payloads may contain, under Dkron's names.
type templateValues struct {
	Report, JobName, ReportingNode, Success, NodeName, Output string
	StartTime, FinishedAt                                     time.Time
}

func domainOf(address string) string {
	return strings.ToLower(address[strings.LastIndexByte(address, '@')+1:])
}

// checkAddress returns why an address gets no mail.
func (m *mailConfig) checkAddress(address string) error {
	if m.Host == "" {
		return errors.New("no mail is configured; start the servers with --mail-host and --mail-from")
	}
	if a, err := mail.ParseAddress(address); err != nil || a.Address != address {
		return fmt.Errorf("%q is no mail address", address)
	}
	for _, d := range m.Domains {
		if strings.EqualFold(d, domainOf(address)) {
			return nil
		}
	}
	return fmt.Errorf("%q is in none of --mail-domains", address)
}

// checkReceiverURL does not quote the URL, which may be secret.
func checkReceiverURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return errors.New("must be a URL such as https://host/path; escape special characters")
	}
	return nil
}

func checkEvents(events, known []string) error {
	for _, e := range events {
		if !slices.Contains(known, e) {
			return fmt.Errorf("there is no event %q; name some of %s", e, strings.Join(known, ", "))
		}
	}
	return nil
}

// listeners returns the operator's receivers of each event.
func (c *notifyConfig) listeners() map[string][]string {
	all, hooks := map[string][]string{}, c.hooks()
	hooks[receiverOwner] = &hook{URL: c.Mail.Host, On: []string{eventFailed, eventRecovered, eventMissed, eventOverdue}}
	for _, receiver := range sortedKeys(hooks) {
		for _, e := range hooks[receiver].On {
			if hooks[receiver].URL != "" {
				all[e] = append(all[e], receiver)
			}
		}
	}
	return all
}

// A courier delivers notices. Its methods are safe for concurrent use.
type courier struct {
	cfg          notifyConfig
	node         string
	dial         dialer
	own, guarded http.Client // for URLs of the operator, and of jobs, which may not lead everywhere
	sends        chan struct{}

	per sync.Map // receiver or host → chan struct{} that bounds attempts to it
}

// A dialer connects as net.Dialer.DialContext does.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// newCourier returns a courier of a node. limits are those of http jobs; dial, if it is not nil, replaces the network.
func newCourier(cfg notifyConfig, node string, limits nodeLimits, dial dialer) (*courier, error) {
	c := &courier{cfg: cfg, node: node, dial: dial, sends: make(chan struct{}, noticeSends)}
	if dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	for client, limits := range map[*http.Client]nodeLimits{&c.own: {AllowMetadata: true}, &c.guarded: limits} {
		t, err := newTransport(nil, limits)
		if err != nil {
			return nil, err
		}
		if dial != nil {
			t.DialContext = dial
		}
		client.Transport = once{t}
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return c, nil
}

// rest closes connections that nothing uses.
func (c *courier) rest() {
	c.own.CloseIdleConnections()
	c.guarded.CloseIdleConnections()
}

// config returns what the courier was made with; without one nobody is told.
func (c *courier) config() *notifyConfig {
	if c == nil {
		return &notifyConfig{}
	}
	return &c.cfg
}

var errNoMail = errors.New("this address gets no mail, of which the job was stored with a warning")

// deliver tells a receiver. key is the same whenever it is told of the same.
func (c *courier) deliver(ctx context.Context, receiver, key string, n notice) error {
	kind, address, _ := strings.Cut(receiver, " ")
	slot := kind
	if kind += " "; kind == receiverURL {
		if at, err := url.Parse(address); err == nil {
			slot = receiverURL + at.Host
		}
	}
	for _, slots := range []chan struct{}{c.slots(slot), c.sends} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, noticeTimeout, fmt.Errorf("no response within %s", noticeTimeout))
	defer cancel()
	if n.Text = n.text(); n.Job != "" {
		job := c.cfg.Page + "#/jobs/" + url.PathEscape(n.Job)
		if n.Links = (&links{Job: job}); n.Execution != "" {
			n.Links.Execution = job + "/executions/" + url.PathEscape(n.Execution)
		}
	}
	switch {
	case kind == receiverURL:
		return c.send(ctx, &c.guarded, http.MethodPost, address, key, nil, n)
	case kind == receiverMail, kind == receiverOwner:
		err := c.cfg.Mail.checkAddress(address)
		if err == nil {
			return c.mail(ctx, address, key, n)
		} else if kind == receiverOwner {
			return errNoMail
		}
		return err
	case kind == receiverSlack:
		team, channel, _ := strings.Cut(address, " ")
		if c.cfg.Slack[team] == "" {
			return fmt.Errorf("this server has no --slack-webhook %s=URL", team)
		}
		doc := struct {
			Channel string `json:"channel,omitempty"`
			Text    string `json:"text"`
		}{channel, n.Text}
		return c.send(ctx, &c.own, http.MethodPost, c.cfg.Slack[team], key, nil, doc)
	}
	h := c.cfg.hooks()[receiver]
	switch {
	case h == nil || h.URL == "":
		return fmt.Errorf("this server has no --%s", receiver)
	case receiver == receiverNotify:
		return c.send(ctx, &c.own, http.MethodPost, h.URL, key, nil, n)
	case receiver == receiverHeartbeat:
		return c.send(ctx, &c.own, http.MethodGet, h.URL, key, nil, nil)
	case receiver == receiverCronitor:
		state := map[string]string{eventStart: "run", outcomeSuccess: "complete"}[cmp.Or(n.Outcome, n.Event)]
		query := url.Values{"state": {cmp.Or(state, "fail")}, "host": {n.Node}, "message": {n.Text},
			"series": {strconv.FormatInt(n.Group, 10)}}
		return c.send(ctx, &c.own, http.MethodGet, h.URL+"/"+url.PathEscape(n.Job)+"?"+query.Encode(), key, nil, nil)
	}
	body, err := c.execute(h.payload, n)
	if err != nil {
		return err
	}
	return c.send(ctx, &c.own, http.MethodPost, h.URL, key, h.header, body)
}

// wantsOutput reports whether a receiver's template may contain the whole output.
func (c *courier) wantsOutput(receiver string) bool {
	inMail := strings.Contains(c.cfg.Mail.Payload, ".Output")
	return receiver == receiverPost || inMail && !strings.HasPrefix(receiver, receiverURL)
}

// execute makes the body of a payload.
func (c *courier) execute(t *template.Template, n notice) ([]byte, error) {
	var out bytes.Buffer
	err := t.Execute(&out, templateValues{Report: n.Text, JobName: n.Job, ReportingNode: c.node, StartTime: n.Started,
		FinishedAt: n.Finished, Success: strconv.FormatBool(n.Outcome == outcomeSuccess), NodeName: n.Node,
		Output: cmp.Or(n.whole, n.Output)})
	return out.Bytes(), err
}

// slots returns the channel that bounds attempts to one receiver.
func (c *courier) slots(receiver string) chan struct{} {
	slots, _ := c.per.LoadOrStore(receiver, make(chan struct{}, noticeSendsPer))
	return slots.(chan struct{})
}

// send makes a request with a body: nil, bytes that header describes, or what is sent as JSON. It follows no redirects.
// Errors do not quote the URL, which may be secret.
func (c *courier) send(
	ctx context.Context, client *http.Client, method, to, key string, header http.Header, body any,
) (err error) {
	doc, raw := body.([]byte)
	if body != nil && !raw {
		if doc, err = json.Marshal(body); err != nil {
			return err
		}
		header = http.Header{"Content-Type": {"application/json"}}
	}
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(doc))
	if err != nil {
		return errURL
	}
	maps.Copy(req.Header, header)
	req.Header.Set("User-Agent", "belfry")
	req.Header.Set("Idempotency-Key", key)
	resp, err := client.Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, noticeReadMax) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the receiver responded with status %d", resp.StatusCode)
	}
	return nil
}

const smtpsPort = 465 // TLS from the first byte; on other ports it begins with STARTTLS, if the server offers that

// mail sends a notice to an address.
func (c *courier) mail(ctx context.Context, to, key string, n notice) error {
	m := &c.cfg.Mail
	text := []byte(n.Text + "\n")
	if n.Links != nil {
		text = fmt.Appendf(text, "\n%s\n", cmp.Or(n.Links.Execution, n.Links.Job))
	}
	if m.Payload != "" {
		var err error
		if text, err = c.execute(m.payload, n); err != nil {
			return err
		}
	}
	subject, _, _ := strings.Cut(n.Text, "\n")
	subject = strings.ToValidUTF8(subject[:min(len(subject), subjectBytes)], "") // servers refuse lines of 1,000 bytes
	var out bytes.Buffer
	fmt.Fprintf(&out, "From: %s\r\nTo: <%s>\r\nSubject: %s\r\nDate: %s\r\nMessage-ID: <%s@%s>\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n",
		m.from, to, mime.QEncoding.Encode("utf-8", strings.TrimSpace(m.Prefix+" "+subject)),
		time.Now().Format(time.RFC1123Z), key, domainOf(m.from.Address))
	body := quotedprintable.NewWriter(&out)
	body.Write(text) // to memory
	body.Close()

	conn, err := c.dial(ctx, "tcp", net.JoinHostPort(m.Host, strconv.FormatUint(uint64(m.Port), 10)))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn = smtpConn{conn, io.LimitReader(conn, noticeReadMax)}
	security := &tls.Config{ServerName: m.Host, RootCAs: m.roots}
	if m.Port == smtpsPort {
		conn = tls.Client(conn, security)
	}
	client, err := smtp.NewClient(conn, m.Host)
	if err == nil {
		err = m.converse(client, security, to, out.Bytes())
	}
	if err == nil {
		return nil
	}
	return cmp.Or(context.Cause(ctx), err)
}

// converse has the server take a message.
func (m *mailConfig) converse(client *smtp.Client, security *tls.Config, to string, message []byte) error {
	if ok, _ := client.Extension("STARTTLS"); ok && m.Port != smtpsPort {
		if err := client.StartTLS(security); err != nil {
			return err
		}
	}
	if m.Username != "" {
		if err := client.Auth(smtp.PlainAuth("", m.Username, m.Password, m.Host)); err != nil {
			return err
		}
	}
	if err := client.Mail(m.from.Address); err != nil {
		return err
	}
	if err := client.Rcpt(to); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	if _, err = w.Write(message); err == nil {
		err = w.Close()
	}
	if err == nil { // the message is taken
		client.Quit()
	}
	return err
}

// smtpConn reads no more of a conversation than noticeReadMax.
type smtpConn struct {
	net.Conn
	in io.Reader
}

func (c smtpConn) Read(p []byte) (int, error) { return c.in.Read(p) }
