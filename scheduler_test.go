package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	scheduleSeed  = flag.Uint64("schedule.seed", 0, "seed of the random schedules; 0 takes one from the clock")
	schedulePairs = flag.Int("schedule.pairs", 2000, "random pairs of zone and schedule to compare with a walk")
)

// rfc3339 reads a time of a table.
func rfc3339(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func mustParseSchedule(t testing.TB, spec, zone, name string) schedule {
	t.Helper()
	s, err := parseSchedule(spec, zone, name)
	if err != nil {
		t.Fatalf("parseSchedule(%q, %q, %q): %v", spec, zone, name, err)
	}
	return s
}

// goldenRows returns the rows of a table of tab-separated columns, in which \s and \t stand for space and tab.
func goldenRows(t *testing.T, path string) [][]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unescape := strings.NewReplacer(`\s`, " ", `\t`, "\t")
	var rows [][]string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		columns := strings.Split(lines.Text(), "\t")
		for i := range columns {
			columns[i] = unescape.Replace(columns[i])
		}
		rows = append(rows, columns)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return rows
}

// ---- The job

// TestDecodeJob: what is no job is refused in one sentence that names the
// field; what a job does not have is ignored, and null is the default.
func TestDecodeJob(t *testing.T) {
	for _, c := range []struct{ doc, err string }{
		{`{"name":"a"}`, ""},
		{`{"name":"a","unknown":{"x":1},"retries":null,"tags":null,"concurrency":null}`, ""},
		{`{"name":"a","starts_at":"2030-01-31T12:00"}`, ""},
		{``, "the body is no job: EOF"},
		{`{`, "the body is no job: unexpected EOF"},
		{`[]`, "a job must be a JSON object, not a JSON array"},
		{`"a"`, "a job must be a JSON object, not a JSON string"},
		{`{"name":1}`, "name: a JSON number does not fit here"},
		{`{"name":"a","retries":-1}`, "retries: a JSON number -1 does not fit here"},
		{`{"name":"a","retries":1.5}`, "retries: a JSON number 1.5 does not fit here"},
		{`{"name":"a","retries":"1"}`, "retries: a JSON string does not fit here"},
		{`{"name":"a","disabled":"yes"}`, "disabled: a JSON string does not fit here"},
		{`{"name":"a","tags":{"x":1}}`, "tags: a JSON number does not fit here"},
		{`{"name":"a","tags":["x"]}`, "tags: a JSON array does not fit here"},
		{`{"name":"a","executor_config":{"command":["x"]}}`, "executor_config: a JSON array does not fit here"},
		{`{"name":"a","expires_at":"tomorrow"}`, `"tomorrow" is no time`},
		{`{"name":"a","expires_at":5}`, "a time must be a string"},
		{`{"name":"a"}{}`, "the body must hold one JSON object and nothing behind it"},
	} {
		j, err := decodeJob([]byte(c.doc), job{Concurrency: concurrencyAllow})
		switch {
		case c.err == "" && (err != nil || j.Name != "a" || j.Concurrency != concurrencyAllow && j.Concurrency != ""):
			t.Errorf("decodeJob(%s) = %+v, %v, want the job a", c.doc, j, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("decodeJob(%s): %v, want %q", c.doc, err, c.err)
		}
	}
}

// TestJob_Validate: a bad field is refused in one sentence that begins with its
// name; what only a run can find out is accepted.
func TestJob_Validate(t *testing.T) {
	ok := job{Name: "a", Schedule: "@every 1m"}
	for _, c := range []struct {
		name  string
		edit  func(j *job)
		field string // '': the job is good
	}{
		{"OK", func(j *job) {}, ""},
		{"OKUnknownExecutor", func(j *job) { j.Executor = "perl" }, ""},
		{"OKNoCommand", func(j *job) { j.Executor = executorShell }, ""},
		{"OKChildWithoutSchedule", func(j *job) { j.Schedule, j.ParentJob = "", "b" }, ""},
		{"OKLetters", func(j *job) { j.Name = "größe_2-ж" }, ""},
		{"OKLocalZone", func(j *job) { j.Timezone = "Local" }, ""},
		{"ErrNameEmpty", func(j *job) { j.Name = "" }, "name"},
		{"ErrNameUpper", func(j *job) { j.Name = "A" }, "name"},
		{"ErrNameSlash", func(j *job) { j.Name = "a/b" }, "name"},
		{"ErrNameLong", func(j *job) { j.Name = strings.Repeat("a", nameBytesMax+1) }, "name"},
		{"ErrNameNoText", func(j *job) { j.Name = "a\xff" }, "name"},
		{"ErrConcurrency", func(j *job) { j.Concurrency = "some" }, "concurrency"},
		{"ErrRetries", func(j *job) { j.Retries = retriesMax + 1 }, "retries"},
		{"ErrParent", func(j *job) { j.ParentJob = "a" }, "parent_job"},
		{"ErrParentWithSchedule", func(j *job) { j.ParentJob, j.Schedule = "b", "never" }, "schedule"},
		{"ErrSchedule", func(j *job) { j.Schedule = "* * * * *" }, "schedule"},
		{"ErrScheduleEmpty", func(j *job) { j.Schedule = "" }, "schedule"},
		{"ErrTimezone", func(j *job) { j.Timezone = "Mars/Base" }, "timezone"},
		{"ErrTimezoneOfChild", func(j *job) { j.Timezone, j.ParentJob, j.Schedule = "Mars/Base", "b", "" }, "timezone"},
		{"ErrTimeout", func(j *job) { j.Executor, j.ExecutorConfig = executorShell, map[string]string{"timeout": "soon"} }, "executor_config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := ok
			c.edit(&j)
			err := j.validate("UTC")
			if (err == nil) != (c.field == "") || err != nil && !strings.HasPrefix(err.Error(), c.field) {
				t.Errorf("validate %+v: %v, want a sentence about %q", j, err, c.field)
			}
		})
	}
}

// TestJob_FirstTick: a job's first tick lies behind both the present and the
// last decided tick, and inside its window; what the scheduler does not fire
// shows what upstream shows.
func TestJob_FirstTick(t *testing.T) {
	at := func(text string) int64 { return rfc3339(t, text).UnixNano() }
	now := at("2026-03-01T12:00:30.5Z")
	for _, c := range []struct {
		name  string
		job   job
		fired string
		want  string // '': never, 0: 1970
	}{
		{"Calendar", job{Schedule: "0 * * * * *"}, "", "2026-03-01T12:01:00Z"},
		{"CalendarBehindFired", job{Schedule: "0 * * * * *"}, "2026-03-01T12:05:00Z", "2026-03-01T12:06:00Z"},
		{"Every", job{Schedule: "@every 10s"}, "", "2026-03-01T12:00:40Z"},
		{"EveryBehindFired", job{Schedule: "@every 10s"}, "2026-03-01T12:00:35Z", "2026-03-01T12:00:45Z"},
		{"Manually", job{Schedule: "@manually"}, "", ""},
		{"At", job{Schedule: "@at 2026-03-01T13:00:00Z"}, "", "2026-03-01T13:00:00Z"},
		{"AtPast", job{Schedule: "@at 2026-03-01T11:00:00Z"}, "", ""},
		{"StartsAt", job{Schedule: "0 * * * * *", StartsAt: instant(at("2026-03-02T00:00:00Z"))}, "", "2026-03-02T00:00:00Z"},
		{"StartsAtPast", job{Schedule: "0 * * * * *", StartsAt: instant(at("2026-02-02T00:00:00Z"))}, "", "2026-03-01T12:01:00Z"},
		{"ExpiresAt", job{Schedule: "0 * * * * *", ExpiresAt: instant(at("2026-03-01T12:01:00Z"))}, "", "2026-03-01T12:01:00Z"},
		{"ExpiresBefore", job{Schedule: "0 * * * * *", ExpiresAt: instant(at("2026-03-01T12:00:59Z"))}, "", ""},
		{"OtherZone", job{Schedule: "0 0 0 * * *", Timezone: "Asia/Tokyo"}, "", "2026-03-01T15:00:00Z"},
		{"ClusterZone", job{Schedule: "0 0 0 * * *"}, "", "2026-03-01T23:00:00Z"},
		{"ChildWithoutSchedule", job{ParentJob: "b"}, "", "1970-01-01T00:00:00Z"},
		{"DisabledShowsStart", job{Schedule: "0 * * * * *", Disabled: true, StartsAt: instant(at("2026-03-02T00:00:30Z"))}, "", "2026-03-02T00:00:30Z"},
		{"DisabledShowsNext", job{Schedule: "0 * * * * *", Disabled: true}, "", "2026-03-01T12:01:00Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fired, want := int64(0), int64(never)
			if c.fired != "" {
				fired = at(c.fired)
			}
			if c.want != "" {
				want = at(c.want)
			}
			if got := c.job.firstTick("Europe/Berlin", now, fired); got != want {
				t.Errorf("firstTick of %+v is %v, want %v", c.job, timeOf(got), timeOf(want))
			}
		})
	}
}

// ---- The choices

// TestChooseNodes: every tag must match, the lowest count limits, and no tags
// mean every node.
func TestChooseNodes(t *testing.T) {
	nodes := []node{
		{"n1", 1, map[string]string{"role": "web", "dc": "a"}},
		{"n2", 2, map[string]string{"role": "web", "dc": "b"}},
		{"n3", 3, map[string]string{"role": "web", "dc": "b", "port": "x:80"}},
		{"n4", 4, map[string]string{"role": "db:1"}},
	}
	for _, c := range []struct {
		tags map[string]string
		from []string // any of
		want int
	}{
		{nil, []string{"n1", "n2", "n3", "n4"}, 4},
		{map[string]string{"role": "web"}, []string{"n1", "n2", "n3"}, 3},
		{map[string]string{"role": "web:2"}, []string{"n1", "n2", "n3"}, 2},
		{map[string]string{"role": "web:9"}, []string{"n1", "n2", "n3"}, 3},
		{map[string]string{"role": "web:0"}, nil, 0},
		{map[string]string{"role": "web", "dc": "b"}, []string{"n2", "n3"}, 2},
		{map[string]string{"role": "web:2", "dc": "b:1"}, []string{"n2", "n3"}, 1},
		{map[string]string{"role": "web:-1"}, nil, 0},
		{map[string]string{"role": "db"}, nil, 0},
		{map[string]string{"role": "db:1:1"}, []string{"n4"}, 1},
		{map[string]string{"role": "none"}, nil, 0},
	} {
		for seed := range uint64(20) {
			got := chooseNodes(c.tags, nodes, rand.New(rand.NewPCG(seed, 0)))
			for i, x := range got {
				if !slices.Contains(c.from, x.Node) || i > 0 && got[i-1].Node >= x.Node {
					t.Errorf("chooseNodes(%v) = %v, want some of %v in order", c.tags, got, c.from)
				}
			}
			if len(got) != c.want {
				t.Errorf("chooseNodes(%v) = %v, want %d nodes", c.tags, got, c.want)
			}
		}
	}
}

// planned is a decision as a table says it.
func planned(base int64, list []decision) (text []string) {
	second := func(at int64) string {
		if at == never {
			return "never"
		}
		return strconv.FormatInt((at-base)/int64(time.Second), 10)
	}
	for _, d := range list {
		s := second(d.Due)
		if d.Until != 0 || d.Count > 1 {
			s += ".." + second(d.Until) + "x" + strconv.FormatInt(d.Count, 10)
		}
		if d.Outcome != "" {
			s += " " + d.Outcome + " (" + d.Reason + ")"
		}
		if d.Late {
			s += " late"
		}
		for _, x := range d.Targets {
			s += " " + x.Node
		}
		text = append(text, s+", then "+second(d.Next))
	}
	return text
}

// TestMoment_Plan: every tick up to now gets an outcome, oldest first: it runs,
// late or not, is skipped with its reason, or is missed with the range counted.
func TestMoment_Plan(t *testing.T) {
	base := rfc3339(t, "2026-03-01T12:00:00Z").UnixNano()
	at := func(seconds int64) int64 { return base + seconds*int64(time.Second) }
	every10 := jobRow{Schedule: "@every 10s", next: at(0)}
	for _, c := range []struct {
		name    string
		row     jobRow
		now     int64 // seconds behind base; so are all times here
		since   int64
		overlap string
		tags    string
		want    []string
	}{
		{name: "OnTime", row: every10, since: -100, want: []string{"0 n1 n2, then 10"}},
		{name: "Late", row: every10, now: 5, since: 3, want: []string{"0 late n1 n2, then 10"}},
		{name: "SeveralOldestFirst", row: every10, now: 25, since: 15, want: []string{"0 late n1 n2, then 10", "10 late n1 n2, then 20", "20 n1 n2, then 30"}},
		{name: "MissedBehindWindow", row: every10, now: 125, since: 125,
			want: []string{"0..60x7 missed (no leader until 2026-03-01T12:02:05Z), then 70", "70 late n1 n2, then 80", "80 late n1 n2, then 90", "90 late n1 n2, then 100", "100 late n1 n2, then 110", "110 late n1 n2, then 120", "120 late n1 n2, then 130"}},
		{name: "MissedAllOfRare", row: jobRow{Schedule: "@every 1h", next: at(0)}, now: 500, since: 500, want: []string{"0..0x1 missed (no leader until 2026-03-01T12:08:20Z), then 3600"}},
		{name: "MissedByLeaderItself", row: jobRow{Schedule: "@every 1h", next: at(0)}, now: 61, since: -100, want: []string{"0..0x1 missed (the leader was more than 1m0s behind), then 3600"}},
		{name: "MissedManyByArithmetic", row: jobRow{Schedule: "@every 1s", next: at(-30 * 86400)}, now: 60, since: 60,
			want: []string{"-2592000..0x2592001 missed (no leader until 2026-03-01T12:01:00Z), then 1", "1..50x50 skipped (later ticks were due at the same time, and only the newest 10 run), then 51",
				"51 late n1 n2, then 52", "52 late n1 n2, then 53", "53 late n1 n2, then 54", "54 late n1 n2, then 55", "55 late n1 n2, then 56", "56 late n1 n2, then 57", "57 late n1 n2, then 58", "58 late n1 n2, then 59", "59 late n1 n2, then 60", "60 n1 n2, then 61"}},
		{name: "ForbidRunsNewest", row: jobRow{Schedule: "@every 10s", Concurrency: concurrencyForbid, next: at(0)}, now: 25, since: 25,
			want: []string{"0..10x2 skipped (later ticks were due at the same time, and only the newest 1 run), then 20", "20 late n1 n2, then 30"}},
		{name: "Overlap", row: every10, since: -100, overlap: "overlap with 7-n1", want: []string{"0 skipped (overlap with 7-n1), then 10"}},
		{name: "AtRunsHoweverLate", row: jobRow{Schedule: "@at 2026-03-01T12:00:00Z", next: at(0)}, now: 86400, since: 86400, want: []string{"0 late n1 n2, then never"}},
		{name: "LastOfWindow", row: jobRow{Schedule: "@every 10s", ExpiresAt: instant(at(15)), next: at(0)}, now: 30, since: -100, want: []string{"0 n1 n2, then 10", "10 n1 n2, then never"}},
		{name: "MissedToEndOfWindow", row: jobRow{Schedule: "@every 10s", ExpiresAt: instant(at(15)), next: at(0)}, now: 300, since: 300,
			want: []string{"0..10x2 missed (no leader until 2026-03-01T12:05:00Z), then never"}},
		{name: "NoNodeYet", row: every10, now: 4, since: 0, tags: `{"role":"none"}`, want: nil},
		{name: "NoNodeAfterFailure", row: every10, now: 6, since: 0, tags: `{"role":"none"}`, want: []string{"0 skipped (no node has the tags that the job asks for), then 10"}},
		{name: "NoNodeAndClockBack", row: every10, now: 6, since: 1000, tags: `{"role":"none"}`, want: nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.row
			r.Name = "a"
			r.Tags, r.Metadata, r.ExecutorConfig, r.Processors = rawJSON(orNull(c.tags)), rawJSON("null"), rawJSON("null"), rawJSON("{}")
			m := moment{now: at(c.now), lostAfter: time.Minute, since: at(c.since), catchup: time.Minute, zone: "UTC", nodes: []node{{Name: "n1"}, {Name: "n2"}}, rnd: rand.New(rand.NewPCG(1, 1))}
			list, err := m.plan(&r, c.overlap)
			if diff := cmp.Diff(c.want, planned(base, list)); err != nil || diff != "" {
				t.Errorf("plan of %s at %d (-want +got): %v\n%s", r.Schedule, c.now, err, diff)
			}
		})
	}
}

// TestMoment_PlanPending: a retry goes to its node, a child to where its tags
// say; who is not there is waited for, and a disabled job runs nothing.
func TestMoment_PlanPending(t *testing.T) {
	nodes := []node{{Name: "n1", Incarnation: 5}, {Name: "n2", Incarnation: 6, Tags: map[string]string{"role": "web"}}}
	for _, c := range []struct {
		name  string
		p     pendingRow
		row   jobRow
		tags  string
		awake int64 // seconds
		want  runDecision
	}{
		{"Retry", pendingRow{Cause: causeRetry, Node: "n2"}, jobRow{}, "null", 0, runDecision{Targets: []target{{"n2", 6}}}},
		{"RetryNodeGone", pendingRow{Cause: causeRetry, Node: "n3"}, jobRow{}, "null", 100, runDecision{}},
		{"RetryDisabled", pendingRow{Cause: causeRetry, Node: "n2"}, jobRow{Disabled: true}, "null", 0, runDecision{Outcome: outcomeSkipped, Reason: "the job is disabled"}},
		{"Child", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"web"}`, 0, runDecision{Targets: []target{{"n2", 6}}}},
		{"ChildNoNodeYet", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"db"}`, 4, runDecision{}},
		{"ChildNoNode", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"db"}`, 6, runDecision{Outcome: outcomeSkipped, Reason: noNodeReason}},
		{"ChildDisabled", pendingRow{Cause: causeChild}, jobRow{Disabled: true}, "null", 0, runDecision{Outcome: outcomeSkipped, Reason: "the job is disabled"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.p.ID, c.p.JobID, c.row.version = 3, 4, jobVersion{4, 9}
			c.row.Tags, c.row.Metadata, c.row.ExecutorConfig, c.row.Processors = rawJSON(c.tags), rawJSON("null"), rawJSON("null"), rawJSON("{}")
			c.want.Pending, c.want.Job, c.want.Rev = 3, 4, 9
			m := moment{now: testStart + c.awake*int64(time.Second), since: testStart, lostAfter: 5 * time.Minute, nodes: nodes, rnd: rand.New(rand.NewPCG(1, 1))}
			got, err := m.planPending(c.p, &c.row)
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("planPending(%+v) (-want +got): %v\n%s", c.p, err, diff)
			}
		})
	}
}

// TestMoment_Resolve: what a node's answer means for an execution in doubt.
func TestMoment_Resolve(t *testing.T) {
	every, once := &jobRow{Name: "a", Schedule: "@every 1m"}, &jobRow{Name: "a", Schedule: "@at 2026-01-01T00:00:00Z"}
	fresh, old := testStart-int64(time.Second), testStart-int64(2*time.Minute)
	for _, c := range []struct {
		name   string
		answer answer
		cause  string
		due    int64
		row    *jobRow
		want   string // outcome of the closing
		again  bool
	}{
		{"Runs", answer{Incarnation: 7, Running: []int64{1, 5}}, causeTick, old, every, "", false},
		{"Holds", answer{Incarnation: 7, Held: []result{{Execution: 5}}}, causeTick, old, every, "", false},
		{"HoldsFromBefore", answer{Incarnation: 8, Held: []result{{Execution: 5}}}, causeTick, old, every, "", false},
		{"NeverStarted", answer{Incarnation: 7, Running: []int64{1}}, causeTick, fresh, every, "", true},
		{"NeverStartedTooOld", answer{Incarnation: 7}, causeTick, old, every, outcomeMissed, false},
		{"NeverStartedOnce", answer{Incarnation: 7}, causeTick, old, once, "", true},
		{"NeverStartedRetry", answer{Incarnation: 7}, causeRetry, old, every, "", true},
		{"NeverStartedDeleted", answer{Incarnation: 7}, causeTick, fresh, nil, outcomeInterrupted, false},
		{"ProcessGone", answer{Incarnation: 8, Running: []int64{1}}, causeTick, fresh, every, outcomeInterrupted, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := moment{now: testStart, catchup: time.Minute, lostAfter: time.Minute, zone: "UTC"}
			got, again := m.resolve(executionRow{ID: 5, Node: "n1", incarnation: 7, Cause: c.cause, Due: c.due}, c.answer, c.row)
			if got.Outcome != c.want || again != c.again || got.Outcome != "" && (got.Execution != 5 || got.Incarnation != 7 || got.Why == "") {
				t.Errorf("resolve with %+v: %+v, again %v, want outcome %q, again %v", c.answer, got, again, c.want, c.again)
			}
		})
	}
}

// newTestScheduler leads over a store whose log is one function call, on a
// clock that the test sets; its one node takes everything.
func newTestScheduler(t *testing.T, now *int64) (*scheduler, *[]dispatch) {
	t.Helper()
	s := newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 100, Timezone: "UTC"}, newStore(t), slog.New(slog.DiscardHandler))
	s.now = func() time.Time { return timeOf(*now) }
	s.nodes = func() []node { return []node{{Name: "n1", Incarnation: 7}} }
	s.propose = func(ctx context.Context, c *command) (applied, error) {
		if err := ctx.Err(); err != nil {
			return applied{}, err
		}
		res := commit(t, s.store, c)[0]
		return res, res.Err
	}
	s.spawn = func(task func()) { task() }
	var sent []dispatch
	s.start = func(_ string, d dispatch) error { sent = append(sent, d); return nil }
	s.ask = func(string, question) (answer, error) { return answer{Incarnation: 7}, nil }
	if err := s.takeOffice(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	return s, &sent
}

// TestScheduler_WriteMeetsChange: a write whose job changes under it is
// computed again, and its caller sees nothing of it.
func TestScheduler_WriteMeetsChange(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	propose, meet := s.propose, 3
	s.propose = func(ctx context.Context, c *command) (applied, error) {
		if c.Put != nil && meet > 0 {
			meet--
			other := job{Name: "a", Schedule: "@every 1m", Metadata: map[string]string{"other": fmt.Sprint(meet)}}
			base, err := s.store.job("a")
			if err != nil {
				base = &jobRow{}
			}
			if res := commit(t, s.store, &command{Now: now, Put: []jobPut{{Base: base.version, Job: other, Next: now + 1e9}}}); res[0].Err != nil {
				t.Fatal(res[0].Err)
			}
		}
		return propose(ctx, c)
	}
	row, _, err := s.put(t.Context(), request{ID: "r"}, job{Name: "a", Schedule: "@every 1h"})
	if err != nil || row.Schedule != "@every 1h" {
		t.Fatalf("put: %+v, %v, want it done", row, err)
	}
	if got, err := s.store.job("a"); err != nil || got.Schedule != "@every 1h" || string(got.Metadata) != "null" {
		t.Errorf("stored is %+v, %v, want what was put last", got, err)
	}
}

// TestScheduler_CallerGoesAway: who hangs up during a write does not leave a
// job that is stored and never fires, or a run that is accepted and never
// dispatched.
func TestScheduler_CallerGoesAway(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	if _, _, err := s.put(gone, request{ID: "p"}, job{Name: "a", Schedule: "@every 1m"}); err != nil {
		t.Fatal(err)
	}
	row, res, err := s.runNow(gone, request{ID: "r"}, "a")
	if err != nil || len(*sent) != 1 || (*sent)[0].Orders[0].Execution != res.Started[0][0] || (*sent)[0].Incarnation != 7 {
		t.Errorf("a run is answered %v and dispatched as %+v", err, *sent)
	}
	jobs, _ := s.popDue(row.next)
	if diff := cmp.Diff([]int64{row.version.ID}, jobs); diff != "" {
		t.Errorf("due at its tick (-want +got):\n%s", diff)
	}
}

// putJobs stores jobs and returns the row of the last.
func putJobs(t *testing.T, s *scheduler, jobs ...job) (row *jobRow) {
	t.Helper()
	for _, j := range jobs {
		if _, _, err := s.put(t.Context(), request{ID: newRequestID()}, j); err != nil {
			t.Fatal(err)
		}
		var err error
		if row, err = s.store.job(j.Name); err != nil {
			t.Fatal(err)
		}
	}
	return row
}

// TestScheduler_Busy: a leader whose log is full for a moment goes on with all
// that it does.
func TestScheduler_Busy(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "a")
	if err != nil {
		t.Fatal(err)
	}
	s.ask = func(string, question) (answer, error) { return answer{Incarnation: 8}, nil } // the process is gone
	propose, busy := s.propose, 1
	ended := make(chan struct{})
	s.propose = func(ctx context.Context, c *command) (applied, error) {
		if c.Close == nil {
			return propose(ctx, c)
		}
		if busy--; busy >= 0 {
			return applied{}, errBusy
		}
		defer close(ended)
		return propose(ctx, c)
	}
	ctx, retire := context.WithCancel(t.Context())
	led := make(chan error)
	go func() { led <- s.lead(ctx, 2) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("what was in doubt when the log was full is not looked at again")
	}
	retire()
	if err := <-led; err != nil {
		t.Error(err)
	}
	if e, err := s.store.execution(res.Started[0][0]); err != nil || e.Outcome != outcomeInterrupted {
		t.Errorf("the run is %q, %v, want interrupted", e.Outcome, err)
	}
}

// TestScheduler_Mute: a node that took its orders although nobody heard so is
// asked, and chosen again, even if it had reported all results by then.
func TestScheduler_Mute(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.start = func(string, dispatch) error { return errors.New("the answer did not come") }
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "a")
	if err != nil {
		t.Fatal(err)
	}
	if nodes := s.moment().nodes; len(nodes) != 0 {
		t.Fatalf("%v are chosen, want none", nodes)
	}
	if _, err := s.report(t.Context(), []result{{Execution: res.Started[0][0], Started: now, Finished: now + 1, Outcome: outcomeSuccess}}); err != nil {
		t.Fatal(err)
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if nodes := s.moment().nodes; len(nodes) != 1 {
		t.Errorf("%v are chosen after the node has answered, want it", nodes)
	}
}

// TestScheduler_KilledUnheard: a process whose row was closed by hand, as its
// node did not answer, is ended when the node does.
func TestScheduler_KilledUnheard(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "a")
	if err != nil {
		t.Fatal(err)
	}
	id := res.Started[0][0]
	e, err := s.store.execution(id)
	if err != nil {
		t.Fatal(err)
	}
	silence := errors.New("no answer")
	s.ask = func(string, question) (answer, error) { return answer{}, silence }
	s.end = func(string, kill) error { return silence }
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.kill(t.Context(), request{ID: "k"}, e); err != nil {
		t.Fatal(err)
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ended []int64
	s.ask = func(string, question) (answer, error) { return answer{Incarnation: 7, Running: []int64{id}}, nil }
	s.end = func(_ string, k kill) error { ended = append(ended, k.Execution); return nil }
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{id}, ended); diff != "" {
		t.Errorf("ended (-want +got):\n%s", diff)
	}
}

// TestScheduler_SlowNode: a node that does not answer the questions of a new
// leader keeps it neither from firing nor from hearing the others.
func TestScheduler_SlowNode(t *testing.T) {
	now := time.Now().UnixNano()
	s, _ := newTestScheduler(t, &now)
	s.now = time.Now
	s.nodes = func() []node { return []node{{Name: "n1", Incarnation: 7}, {Name: "n2", Incarnation: 8}} }
	putJobs(t, s, job{Name: "a", Schedule: "@manually"}, job{Name: "b", Schedule: "@every 1s"})
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "a"); err != nil {
		t.Fatal(err)
	}
	s.spawn = func(task func()) { s.tasks.Go(task) }
	slow, fired := make(chan struct{}), make(chan struct{}, 100)
	s.ask = func(name string, _ question) (answer, error) {
		if name == "n1" {
			<-slow
		}
		return answer{Incarnation: 8}, nil
	}
	s.start = func(string, dispatch) error { fired <- struct{}{}; return nil }
	ctx, retire := context.WithCancel(t.Context())
	led := make(chan error)
	go func() { led <- s.lead(ctx, 2) }()
	select {
	case <-fired:
	case <-time.After(4 * time.Second):
		t.Error("nothing is fired while a node does not answer")
	}
	close(slow)
	retire()
	if err := <-led; err != nil {
		t.Error(err)
	}
}

// TestScheduler_ManyTargets: what is more than a command may hold goes in
// several, and ends nobody's office.
func TestScheduler_ManyTargets(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "parent", Schedule: "@manually"})
	for i := range 30 {
		putJobs(t, s, job{Name: fmt.Sprintf("child-%d", i), ParentJob: "parent"}, job{Name: fmt.Sprintf("job-%d", i), Schedule: "@every 1m"})
	}
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "parent")
	if err != nil {
		t.Fatal(err)
	}
	var nodes []node
	for i := range 150 {
		nodes = append(nodes, node{Name: strings.Repeat("n", 240) + fmt.Sprint(i), Incarnation: math.MaxUint64})
	}
	s.nodes = func() []node { return nodes }
	propose := s.propose
	var one sync.Mutex
	s.propose = func(ctx context.Context, c *command) (applied, error) {
		one.Lock()
		defer one.Unlock()
		if data, err := c.encode(); err != nil || len(data) > commandBytesMax {
			return applied{}, errTooLarge
		}
		return propose(ctx, c)
	}
	if _, err := s.report(t.Context(), []result{{Execution: res.Started[0][0], Started: now, Finished: now + 1, Outcome: outcomeSuccess}}); err != nil {
		t.Fatal(err)
	}
	now += int64(time.Minute)
	var runs atomic.Int64
	s.start = func(_ string, d dispatch) error { runs.Add(int64(len(d.Orders))); return nil }
	if _, err := s.fireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := int64(60 * len(nodes)); runs.Load() != want {
		t.Errorf("%d runs are dispatched, want %d", runs.Load(), want)
	}
}

// TestScheduler_SlowLog: a tick does not come late by the time that it took to
// fire the ones before.
func TestScheduler_SlowLog(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 1s"}, job{Name: "b", Schedule: "@every 2s"})
	propose := s.propose
	s.propose = func(ctx context.Context, c *command) (applied, error) {
		res, err := propose(ctx, c)
		now += int64(900 * time.Millisecond)
		return res, err
	}
	now += int64(time.Second)
	if wait, err := s.fireDue(t.Context()); err != nil || wait > 100*time.Millisecond {
		t.Errorf("the next tick is waited for %s, %v, want what is left of a second", wait, err)
	}
}

// TestScheduler_Zone: a server that never led reads schedules as the leader does.
func TestScheduler_Zone(t *testing.T) {
	follower := newScheduler(schedulerConfig{Timezone: "America/New_York"}, newStore(t), slog.New(slog.DiscardHandler))
	if got := follower.timezone(); got != "America/New_York" {
		t.Errorf("without a cluster the zone is %s", got)
	}
	commit(t, follower.store, &command{Now: testStart, Found: &foundation{ID: "c", Timezone: "Europe/Berlin"}})
	if got := follower.timezone(); got != "Europe/Berlin" {
		t.Errorf("the zone is %s, want the cluster's", got)
	}
}

// TestScheduler_LargeOrders: what a node gets at a time is no more than it takes.
func TestScheduler_LargeOrders(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	orders := map[target][]order{{"n1", 7}: make([]order, 400)}
	for i := range orders[target{"n1", 7}] {
		orders[target{"n1", 7}][i] = order{Execution: int64(i), Config: map[string]string{"body": strings.Repeat("<", 80_000)}, Processors: map[string]map[string]string{"files": {"log_dir": strings.Repeat("<", 4_000)}}}
	}
	s.dispatch(orders, firstTry)
	next := int64(0)
	for _, d := range *sent {
		doc, err := json.Marshal(d)
		if err != nil || len(doc) > rpcBytesMax {
			t.Errorf("a dispatch has %d bytes, %v, want at most %d", len(doc), err, rpcBytesMax)
		}
		for _, o := range d.Orders {
			if o.Execution != next {
				t.Fatalf("order %d comes where %d should", o.Execution, next)
			}
			next++
		}
	}
	if next != 400 {
		t.Errorf("%d orders are sent, want 400", next)
	}
}

// TestScheduler_DoubtOld: what has run for long is asked about, even if nothing
// says that its node does not run it.
func TestScheduler_DoubtOld(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "a"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		age  time.Duration
		want int
	}{{reviewPause, 0}, {reviewPause + 1, 1}} {
		if err := s.doubtOld(timeOf(testStart).Add(c.age)); err != nil || len(s.doubts) != c.want {
			t.Errorf("%d are in doubt after %s, %v, want %d", len(s.doubts), c.age, err, c.want)
		}
	}
}

// TestScheduler_ClockBack: jobs that a clock ahead of its time has carried into
// the future come back when it is set right, however many they are.
func TestScheduler_ClockBack(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	versions := fill(t, s.store, ticksMax+50)
	ahead := testStart + int64(48*time.Hour)
	for part := range slices.Chunk(versions, ticksMax) {
		c := &command{Now: ahead}
		rows, err := s.store.jobsByID(idsOf(part))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			c.Decide = append(c.Decide, decision{Job: r.version.ID, Rev: r.version.Rev, Due: r.next, Until: ahead, Count: 2, Next: ahead + 1e9, Outcome: outcomeMissed, Reason: "why"})
		}
		commit(t, s.store, c)
	}
	now = testStart
	if err := s.noticeGap(t.Context(), timeOf(ahead), timeOf(testStart)); err != nil {
		t.Fatal(err)
	}
	left, err := s.store.firedBehind(testStart+int64(futureMax), 0)
	if err != nil || len(left) != 0 {
		t.Errorf("%d jobs are left in the future, %v", len(left), err)
	}
	if m := s.moment(); m.since > m.now {
		t.Errorf("in office since %d, which is behind now, %d", m.since, m.now)
	}
}

func idsOf(versions []jobVersion) (ids []int64) {
	for _, v := range versions {
		ids = append(ids, v.ID)
	}
	return ids
}

func orNull(tags string) string {
	if tags == "" {
		return "null"
	}
	return tags
}

// ---- The dialect

// Every tick in the table of upstream's answers follows from the one before it.
func TestSchedule_Next_Golden(t *testing.T) {
	rows := goldenRows(t, "testdata/cron.tsv")
	if len(rows) != 3030 {
		t.Fatalf("got %d rows, want 3030", len(rows))
	}
	for _, row := range rows {
		name, spec, zone, from, ticks := row[1], row[2], row[3], row[4], row[5]
		if zone == "" {
			zone = "UTC"
		}
		s, err := parseSchedule(spec, zone, name)
		if err != nil {
			t.Errorf("%s: %q in %s: %v", row[0], spec, zone, err)
			continue
		}
		after := rfc3339(t, from)
		for want := range strings.SplitSeq(ticks, " ") {
			got := s.next(after)
			if text := tickText(got); text != want {
				t.Errorf("%s: %q in %s for %q after %s: got %s, want %s",
					row[0], spec, zone, name, after.Format(time.RFC3339Nano), text, want)
				break
			}
			after = got
		}
	}
}

func tickText(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.Format(time.RFC3339)
}

func TestParseSchedule_ErrGolden(t *testing.T) {
	rows := goldenRows(t, "testdata/cron-invalid.tsv")
	if len(rows) < 170 {
		t.Fatalf("got %d rows, want at least 170", len(rows))
	}
	for _, row := range rows {
		why, name, spec, zone := row[0], row[1], row[2], row[3]
		if zone == "" {
			zone = "UTC"
		}
		_, err := parseSchedule(spec, zone, name)
		if err == nil {
			t.Errorf("%s: %q in %q for %q: accepted, want an error", why, spec, zone, name)
			continue
		}
		_, inField, _ := strings.Cut(why, " (")
		if inField = strings.TrimSuffix(inField, ")"); !strings.HasPrefix(err.Error(), inField) {
			t.Errorf("%s: %q: got error %q, want it to begin with the field", why, spec, err)
		}
	}
}

// What a recorded upstream server accepted, with the part of the next tick that its answer had to contain.
func TestSchedule_Next_Recorded(t *testing.T) {
	after := rfc3339(t, "2025-12-03T14:25:36Z")
	for _, test := range []struct{ name, spec, want string }{
		{"sc-job", "0 0 12 * * *", "T12:00:00Z"},
		{"sc-job", "*/5 * * * * *", ":40Z"},
		{"sc-job", "0 30 4 1,15 * *", "-15T04:30:00Z"},
		{"sc-job", "0 30 4 1,15 * 5", "-05T04:30:00Z"},
		{"sc-job", "0 0 0 1 JAN *", "-01-01T00:00:00Z"},
		{"sc-job", "0 0 0 * * MON-FRI", "T00:00:00Z"},
		{"sc-job", "0 0 6 ? * SUN", "-07T06:00:00Z"},
		{"sc-job", "0-10/2 0 0 * * *", "T00:00:00Z"},
		{"sc-job", "59 59 23 31 12 *", "-12-31T23:59:59Z"},
		{"sc-job", "1 2 3 * jan,FEB sat", "-01-03T03:02:01Z"},
		{"sc-job", "0 5/15 7 * * *", "T07:05:00Z"},
		{"sc-job", "0 0 8 13 * 5", "-05T08:00:00Z"},
		{"sc-job", "0  0  9   * * *", "T09:00:00Z"},
		{"sc-job", "CRON_TZ=Asia/Tokyo 0 0 12 * * *", "T03:00:00Z"},
		{"sc-job", "TZ=Asia/Kolkata 0 0 12 * * *", "T06:30:00Z"},
		{"sd-every", "@every 1h", "-03T15:25:36Z"},
		{"sd-every-mixed", "@every 1h30m15s", "-03T15:55:51Z"},
		{"sd-at", "@at 2099-06-01T12:00:00Z", "2099-06-01T12:00:00Z"},
		{"sd-at-offset", "@at 2099-06-01T12:00:00+02:00", "2099-06-01T10:00:00Z"},
		{"sd-at-past", "@at 2001-01-01T00:00:00Z", "never"},
		{"sd-manually", "@manually", "never"},
		{"sd-minutely", "@minutely", "-03T14:26:00Z"},
		{"sd-hourly", "@hourly", "-03T15:00:00Z"},
		{"sd-daily", "@daily", "-04T00:00:00Z"},
		{"sd-midnight", "@midnight", "-04T00:00:00Z"},
		{"sd-weekly", "@weekly", "-07T00:00:00Z"},
		{"sd-monthly", "@monthly", "2026-01-01T00:00:00Z"},
		{"sd-yearly", "@yearly", "2026-01-01T00:00:00Z"},
		{"sd-annually", "@annually", "2026-01-01T00:00:00Z"},
		{"hash-a", "0 ~ ~ * * *", "T10:22:00Z"},
		{"hash-a", "~ 0 5 * * *", "T05:00:22Z"},
		{"hash-a", "0 0 0 ~ * *", "-03T00:00:00Z"},
		{"hash-a", "0 0 0 1 ~ *", "-11-01T00:00:00Z"},
		{"hash-a", "0 0 0 * * ~", "T00:00:00Z"},
		{"hash-a", "TZ=UTC ~ ~ ~ * * *", "T10:22:22Z"},
		{"hash-nightly-report", "0 ~ ~ * * *", "T01:25:00Z"},
		{"hash-nightly-report", "~ 0 5 * * *", "T05:00:25Z"},
		{"hash-nightly-report", "0 0 0 ~ * *", "-14T00:00:00Z"},
		{"hash-nightly-report", "0 0 0 1 ~ *", "-02-01T00:00:00Z"},
		{"hash-nightly-report", "TZ=UTC ~ ~ ~ * * *", "T01:25:25Z"},
	} {
		s, err := parseSchedule(test.spec, "UTC", test.name)
		if err != nil {
			t.Errorf("%q: %v", test.spec, err)
		} else if got := tickText(s.next(after)); !strings.HasSuffix(got, test.want) {
			t.Errorf("%q for %q: got %s, want ...%s", test.spec, test.name, got, test.want)
		}
	}
}

// What a recorded upstream server refused, or should have.
func TestParseSchedule_ErrRecorded(t *testing.T) {
	for _, spec := range []string{
		"", "* * * * *", "* * * * * * *", "60 * * * * *", "* 60 * * * *", "* * 24 * * *", "* * * 0 * *", "* * * 32 * *",
		"* * * * 13 *", "* * * * 0 *", "* * * * * 7", "* * * * * FUN", "* * * * FOO *", "a b c d e f", "1-70 * * * * *",
		"10-5 * * * * *", "*/0 * * * * *", "1--2 * * * * *", "1/2/3 * * * * *", "-1 * * * * *", "1.5 * * * * *",
		"* * * L * *", "* * * * * 5#2", "* * * 15W * *", "@nosuch", "@every", "@every x", "@every 5", "@every 1d",
		"@every ~", "@at", "@at x", "@at 2099-01-01", "@at 2099-01-01T00:00:00", "@reboot", "@Daily", "never", "x",
		"CRON_TZ=Mars/Base 0 0 0 * * *", "TZ=Mars/Base 0 0 0 * * *", "every 5 minutes",
		"TZ=UTC", "TZ=", "CRON_TZ=UTC ", "TZ=UTC TZ=UTC 0 0 0 * * *",
	} {
		if _, err := parseSchedule(spec, "UTC", "si-job"); err == nil {
			t.Errorf("%q: accepted, want an error", spec)
		}
	}
}

// An error names the field, shows the text and says what would be right.
func TestParseSchedule_ErrText(t *testing.T) {
	for _, test := range []struct{ spec, want string }{
		{"", `0 fields in "", want six: second, minute, hour, day of month, month, day of week`},
		{"* * * * *", `5 fields in "* * * * *", want six: second, minute, hour, day of month, month, day of week`},
		{"60 * * * * *", `second "60": "60" is not allowed, want 0 to 59`},
		{"0 1-x * * * *", `minute "1-x": "x" is not allowed, want 0 to 59`},
		{"0 0 1,*/0 * * *", `hour "*/0": "0" is no step, want a whole number of at least 1`},
		{"0 0 0 9-3 * *", `day of month "9-3": the range runs backwards, want the lower value first`},
		{"0 0 0 , * *", `day of month ",": no value in the list, want 1 to 31`},
		{"0 0 0 1 MÄR *", `month "MÄR": "MÄR" is not allowed, want 1 to 12 or jan to dec`},
		{"0 0 0 * * 7", `day of week "7": "7" is not allowed, want 0 to 6 or sun to sat`},
		{"0 0 0 * * 1-2-3", `day of week "1-2-3": "2-3" is not allowed, want 0 to 6 or sun to sat`},
		{"@every 1d", `@every "1d" is no duration, want one such as 1h30m`},
		{"@at noon", `@at "noon" is no time, want one such as 2030-01-31T12:00:00Z`},
		{"@reboot", `unknown descriptor "@reboot", want @yearly, @annually, @monthly, @weekly, @daily, @midnight, ` +
			`@hourly, @minutely, @manually, @every <duration> or @at <time>`},
		{"TZ=UTC", `nothing behind the zone in "TZ=UTC", want six fields or a descriptor`},
		{"TZ=UTC @at 2030-01-01T00:00:00Z", `a zone in front of @at in "TZ=UTC @at 2030-01-01T00:00:00Z", ` +
			`want it in the time itself`},
		{"@every", `@every "" is no duration, want one such as 1h30m`},
		{"TZ=Mars/Base @daily", `unknown time zone "Mars/Base", want an IANA name such as "Europe/Berlin"`},
		{strings.Repeat(" ", 1025), `1025 bytes long, want at most 1024`},
	} {
		if _, err := parseSchedule(test.spec, "UTC", "job"); err == nil || err.Error() != test.want {
			t.Errorf("%q:\n got %v\nwant %s", test.spec, err, test.want)
		}
	}
}

func TestLoadZone(t *testing.T) {
	for _, name := range []string{"UTC", "Europe/Berlin", "Etc/GMT+5", "America/Argentina/Buenos_Aires"} {
		loc, err := loadZone(name)
		if err != nil || loc.String() != name {
			t.Errorf("%q: got %v, %v", name, loc, err)
		}
		if again, _ := loadZone(name); again != loc {
			t.Errorf("%q: loaded twice, want one value", name)
		}
	}
	for _, name := range []string{
		"", " ", "Local", ".", "..", "../etc/passwd", "/etc/localtime", `\etc`, "Europe", "Europe/", "./UTC",
		"Europe//Berlin", "Europe/../UTC", "Mars/Base", "europe/nowhere", "CEST", "+02:00", "12", "UTC\x00", "zone.tab",
	} {
		if loc, err := loadZone(name); err == nil {
			t.Errorf("%q: got %v, want an error", name, loc)
		}
	}
}

// Jobs with the same fields in the same zone share one calendar; a `~` sets apart only those it makes different.
func TestParseSchedule_Shared(t *testing.T) {
	base := mustParseSchedule(t, "0 ~ 3 * * *", "UTC", "ab")
	for _, test := range []struct {
		spec, zone, name string
		want             bool
	}{
		{"0 ~ 3 * * *", "UTC", "ba", true},
		{"TZ=UTC 0 ~  3 * * *", "Europe/Berlin", "ab", true},
		{"0 ~ 3 * * *", "UTC", "b", false},
		{"0 ~ 3 * * *", "Europe/Berlin", "ab", false},
		{"0 ~ 4 * * *", "UTC", "ab", false},
	} {
		if got := mustParseSchedule(t, test.spec, test.zone, test.name) == base; got != test.want {
			t.Errorf("%q in %s for %q: shared is %t, want %t", test.spec, test.zone, test.name, got, test.want)
		}
	}
}

func TestParseSchedule_CacheBound(t *testing.T) {
	calendars.mu.Lock()
	clear(calendars.byKey)
	for i := range calendarsMax {
		calendars.byKey[calendarKey{text: [fieldCount]string{fmt.Sprint("filler", i)}}] = nil
	}
	calendars.mu.Unlock()

	mustParseSchedule(t, "1 2 3 4 5 *", "UTC", "job")
	calendars.mu.Lock()
	defer calendars.mu.Unlock()
	if got := len(calendars.byKey); got != 1 {
		t.Errorf("got %d calendars behind a full cache, want 1", got)
	}
}

// ZoneBounds has no bounds or wrong ones in places: the last day of a leap year whose zone is known by a rule only,
// and zones that never change again. A day that a zone leaves out has no ticks.
func TestSchedule_Next_ZoneBounds(t *testing.T) {
	for _, test := range []struct{ spec, zone, after, want string }{
		{"0 30 * * * *", "Europe/Warsaw", "2040-12-31T12:00:00Z", "2040-12-31T12:30:00Z"},
		{"0 30 0 1 1 *", "Europe/Warsaw", "2040-12-31T12:00:00Z", "2040-12-31T23:30:00Z"},
		{"0 30 12 * 7 *", "Europe/Warsaw", "2040-12-31T12:00:00Z", "2041-07-01T10:30:00Z"},
		{"0 30 12 * 1 *", "Australia/Sydney", "2040-12-31T00:00:00Z", "2041-01-01T01:30:00Z"},
		{"0 0 12 * 7 *", "Asia/Kathmandu", "2044-12-31T12:00:00Z", "2045-07-01T06:15:00Z"},
		{"0 0 12 * 12 *", "Pacific/Apia", "2011-12-29T22:00:00Z", "2011-12-30T22:00:00Z"},
	} {
		s := mustParseSchedule(t, test.spec, test.zone, "job")
		if got := tickText(s.next(rfc3339(t, test.after))); got != test.want {
			t.Errorf("%q in %s after %s: got %s, want %s", test.spec, test.zone, test.after, got, test.want)
		}
	}
}

// Where either day field has a star anywhere in its list, a day has to match both; else one of them is enough.
func TestSchedule_Next_Stars(t *testing.T) {
	for _, test := range []struct{ days, weekdays, want string }{
		{"*", "1", "2025-06-09"},
		{"*,13", "1", "2025-06-09"},
		{"13,?", "1", "2025-06-09"},
		{"13,*/1", "1", "2025-06-09"},
		{"*-13", "1", "2025-06-09"},
		{"13", "*,1", "2025-06-13"},
		{"13", "1", "2025-06-09"},
		{"6", "1", "2025-06-06"},
		{"1-31", "1", "2025-06-05"},
		{"*/2", "1", "2025-06-05"},
		{"*/31", "1", "2025-06-09"},
	} {
		spec := fmt.Sprintf("0 0 0 %s * %s", test.days, test.weekdays)
		got := mustParseSchedule(t, spec, "UTC", "job").next(rfc3339(t, "2025-06-04T00:00:00Z"))
		if got := got.Format(time.DateOnly); got != test.want {
			t.Errorf("%q: got %s, want %s", spec, got, test.want)
		}
	}
}

// The search ends with the fifth year after the one it starts in.
func TestSchedule_Next_Horizon(t *testing.T) {
	s := mustParseSchedule(t, "0 0 0 29 2 *", "UTC", "job")
	for after, want := range map[string]string{
		"2098-12-31T23:59:58Z": "never",
		"2098-12-31T23:59:59Z": "2104-02-29T00:00:00Z",
	} {
		if got := tickText(s.next(rfc3339(t, after))); got != want {
			t.Errorf("after %s: got %s, want %s", after, got, want)
		}
	}
}

func TestSchedule_Zero(t *testing.T) {
	var never schedule
	now := rfc3339(t, "2025-01-01T00:00:00Z")
	if got := never.next(now); !got.IsZero() {
		t.Errorf("next: got %v", got)
	}
	if got := never.first(now, now.Add(time.Hour)); !got.IsZero() {
		t.Errorf("first: got %v", got)
	}
	if n, last := never.count(now, now.AddDate(5, 0, 0)); n != 0 || !last.IsZero() {
		t.Errorf("count: got %d, %v", n, last)
	}
}

// The first tick lies after now and not before the window opens.
func TestSchedule_First(t *testing.T) {
	const now = "2025-06-01T10:00:00Z"
	for _, test := range []struct{ spec, start, want string }{
		{"0 0 * * * *", "", "2025-06-01T11:00:00Z"},
		{"0 0 * * * *", "2025-05-01T00:30:00Z", "2025-06-01T11:00:00Z"},
		{"0 0 * * * *", now, "2025-06-01T11:00:00Z"},
		{"0 0 * * * *", "2025-06-01T12:00:00Z", "2025-06-01T12:00:00Z"},
		{"0 0 * * * *", "2025-06-01T12:00:00.001Z", "2025-06-01T13:00:00Z"},
		{"@every 7m", "", "2025-06-01T10:07:00Z"},
		{"@every 7m", "2025-05-01T00:30:00Z", "2025-06-01T10:07:00Z"},
		{"@every 7m", "2025-06-01T12:00:00Z", "2025-06-01T12:00:00Z"},
		{"@every 7m", "2025-06-01T12:00:00.001Z", "2025-06-01T12:00:01Z"},
		{"@at 2025-06-01T12:00:00Z", "", "2025-06-01T12:00:00Z"},
		{"@at 2025-06-01T12:00:00Z", "2025-06-01T12:00:00Z", "2025-06-01T12:00:00Z"},
		{"@at 2025-06-01T12:00:00Z", "2025-06-01T12:00:01Z", "never"},
		{"@at 2025-06-01T10:00:00Z", "", "never"},
		{"@manually", "2025-06-01T12:00:00Z", "never"},
	} {
		var start time.Time
		if test.start != "" {
			start = rfc3339(t, test.start)
		}
		got := tickText(mustParseSchedule(t, test.spec, "UTC", "job").first(rfc3339(t, now), start))
		if got != test.want {
			t.Errorf("%q from %q: got %s, want %s", test.spec, test.start, got, test.want)
		}
	}
}

func TestSchedule_Count(t *testing.T) {
	const from = "2025-01-01T00:00:00Z"
	for _, test := range []struct {
		spec, zone, to string
		want           int64
		last           string
	}{
		{"* * * * * *", "Europe/Berlin", "2030-01-01T00:00:00Z", 1826 * 86400, "2030-01-01T00:00:00Z"},
		{"0 0 0 1 1 *", "UTC", "2030-01-01T00:00:00Z", 5, "2030-01-01T00:00:00Z"},
		{"0 0 0 1 1 *", "UTC", "2029-12-31T23:59:59Z", 4, "2029-01-01T00:00:00Z"},
		{"0 30 2 * * *", "Europe/Berlin", "2026-01-01T00:00:00Z", 365, "2025-12-31T01:30:00Z"},
		{"0 0 0 31 6 *", "UTC", "2030-01-01T00:00:00Z", 0, "never"},
		{"* * * * * *", "UTC", from, 0, "never"},
		{"* * * * * *", "UTC", "2024-12-31T23:00:00Z", 0, "never"},
		{"* * * * * *", "UTC", "2025-01-01T00:00:00.999Z", 0, "never"},
		{"@every 7s", "UTC", "2025-01-01T00:00:06.999Z", 0, "never"},
		{"@every 7s", "UTC", "2025-01-01T00:01:00Z", 8, "2025-01-01T00:00:56Z"},
		{"@every 1s", "UTC", "2030-01-01T00:00:00Z", 1826 * 86400, "2030-01-01T00:00:00Z"},
		{"@at 2025-01-01T00:00:00Z", "UTC", "2030-01-01T00:00:00Z", 0, "never"},
		{"@at 2025-01-02T00:00:00Z", "UTC", "2025-01-02T00:00:00Z", 1, "2025-01-02T00:00:00Z"},
		{"@at 2025-01-02T00:00:01Z", "UTC", "2025-01-02T00:00:00Z", 0, "never"},
	} {
		n, last := mustParseSchedule(t, test.spec, test.zone, "job").count(rfc3339(t, from), rfc3339(t, test.to))
		if n != test.want || tickText(last) != test.last {
			t.Errorf("%q in %s up to %s: got %d, last %s; want %d, %s",
				test.spec, test.zone, test.to, n, tickText(last), test.want, test.last)
		}
	}
}

// changingZones move by an hour, by half of one, by a day, at midnight, twice in Ramadan, or not at all.
var changingZones = []string{
	"Europe/Berlin", "Europe/Dublin", "Europe/Warsaw", "America/New_York", "America/St_Johns", "America/Sao_Paulo",
	"America/Santiago", "America/Caracas", "America/Nuuk", "Africa/Cairo", "Africa/Casablanca", "Asia/Tehran",
	"Asia/Gaza", "Asia/Pyongyang", "Asia/Kathmandu", "Asia/Beirut", "Antarctica/Troll", "Australia/Lord_Howe",
	"Pacific/Apia", "Pacific/Chatham", "UTC",
}

// changeDays returns about when each zone changed its offset since 2000, to half a day, and the last day of a leap
// year, by zone.
func changeDays(t *testing.T) map[string][]time.Time {
	t.Helper()
	days := map[string][]time.Time{}
	for _, zone := range changingZones {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
		_, before := at.In(loc).Zone()
		for ; at.Year() < 2045; at = at.Add(12 * time.Hour) {
			_, offset := at.In(loc).Zone()
			if offset != before {
				days[zone] = append(days[zone], at)
			}
			before = offset
		}
		days[zone] = append(days[zone], time.Date(2040, 12, 31, 0, 0, 0, 0, time.UTC))
	}
	return days
}

// pickChange returns a random zone and about the time of one of its changes.
func pickChange(rnd *rand.Rand, changes map[string][]time.Time) (zone string, at time.Time) {
	zone = changingZones[rnd.IntN(len(changingZones))]
	return zone, changes[zone][rnd.IntN(len(changes[zone]))]
}

// randomField is one field as text and as the numbers it means, made without a parser.
type randomField struct {
	text string
	has  [60]bool
	star bool
}

func newRandomField(rnd *rand.Rand, low, high int) randomField {
	var f randomField
	from := low + rnd.IntN(high-low+1)
	to := from + rnd.IntN(high-from+1)
	step := 1 + rnd.IntN(12)
	switch rnd.IntN(6) {
	case 0:
		f.text, f.star = "*", true
		from, to, step = low, high, 1
	case 1:
		f.text = fmt.Sprint(from)
		to = from
	case 2:
		f.text = fmt.Sprintf("%d-%d", from, to)
		step = 1
	case 3:
		f.text, f.star = fmt.Sprintf("*/%d", step), step == 1
		from, to = low, high
	case 4:
		f.text = fmt.Sprintf("%d-%d/%d", from, to, step)
	case 5:
		f.text = fmt.Sprintf("%d,%d/%d", low, from, step)
		f.has[low] = true
		to = high
	}
	for v := from; v <= to; v += step {
		f.has[v] = true
	}
	return f
}

// randomSchedule fires in at most one second of a minute and mostly on every day, or few would fire near a change.
type randomSchedule struct {
	second                            int
	minute, hour, day, month, weekday randomField
}

func newRandomSchedule(rnd *rand.Rand) randomSchedule {
	s := randomSchedule{
		second:  rnd.IntN(60),
		minute:  newRandomField(rnd, 0, 59),
		hour:    newRandomField(rnd, 0, 23),
		day:     newRandomField(rnd, 1, 31),
		month:   newRandomField(rnd, 1, 12),
		weekday: newRandomField(rnd, 0, 6),
	}
	every := randomField{text: "?", star: true}
	for v := range every.has {
		every.has[v] = true
	}
	for _, f := range []*randomField{&s.day, &s.month, &s.weekday} {
		if rnd.IntN(3) > 0 {
			*f = every
		}
	}
	return s
}

func (s randomSchedule) spec() string {
	return fmt.Sprintf("%d %s %s %s %s %s", s.second, s.minute.text, s.hour.text, s.day.text, s.month.text, s.weekday.text)
}

// walk returns the ticks in [from, to) by looking at every minute.
func (s randomSchedule) walk(loc *time.Location, from, to time.Time) []time.Time {
	var ticks []time.Time
	for at := from.Add(time.Duration(s.second) * time.Second); at.Before(to); at = at.Add(time.Minute) {
		wall := at.In(loc)
		hour, minute, _ := wall.Clock()
		_, month, date := wall.Date()
		day := s.day.has[date] && s.weekday.has[wall.Weekday()]
		if !s.day.star && !s.weekday.star {
			day = s.day.has[date] || s.weekday.has[wall.Weekday()]
		}
		if s.minute.has[minute] && s.hour.has[hour] && day && s.month.has[month] {
			ticks = append(ticks, at)
		}
	}
	return ticks
}

// tickChain returns the ticks in [from, to) by asking for one after the other.
func tickChain(s schedule, from, to time.Time) []time.Time {
	var ticks []time.Time
	for at := s.next(from.Add(-1)); !at.IsZero() && at.Before(to); at = s.next(at) {
		ticks = append(ticks, at)
	}
	return ticks
}

// newScheduleRand returns a source whose seed is logged and can be given with -schedule.seed.
func newScheduleRand(t *testing.T) *rand.Rand {
	seed := *scheduleSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -schedule.seed=%d -schedule.pairs=%d", seed, *schedulePairs)
	return rand.New(rand.NewPCG(seed, 0))
}

// Around every kind of change of offset the ticks are those found by walking all minutes.
func TestSchedule_Next_Walk(t *testing.T) {
	rnd, changes := newScheduleRand(t), changeDays(t)
	ticks := 0
	for range *schedulePairs {
		zone, change := pickChange(rnd, changes)
		random := newRandomSchedule(rnd)
		s := mustParseSchedule(t, random.spec(), zone, "job")
		from, to := change.AddDate(0, 0, -3), change.AddDate(0, 0, 3)
		want, got := random.walk(s.calendar.zone, from, to), tickChain(s, from, to)
		if !slices.EqualFunc(want, got, time.Time.Equal) {
			t.Fatalf("%q in %s around %v (-walked +next):\n%s", random.spec(), zone, change, cmp.Diff(want, got))
		}
		ticks += len(want)
	}
	t.Logf("%d ticks compared", ticks)
}

// Counting comes to what going from tick to tick finds, whatever the ends of the window.
func TestSchedule_Count_Walk(t *testing.T) {
	rnd, changes := newScheduleRand(t), changeDays(t)
	for range *schedulePairs {
		zone, change := pickChange(rnd, changes)
		spec := newRandomSchedule(rnd).spec()
		s := mustParseSchedule(t, spec, zone, "job")
		from := change.Add(-time.Duration(rnd.Int64N(int64(5 * oneDay))))
		to := from.Add(time.Duration(rnd.Int64N(int64(10 * oneDay))))
		want := tickChain(s, from.Add(1), to.Add(1))
		var wantLast time.Time
		if len(want) > 0 {
			wantLast = want[len(want)-1]
		}
		if n, last := s.count(from, to); n != int64(len(want)) || !last.Equal(wantLast) {
			t.Fatalf("%q in %s from %v to %v: got %d, last %v; want %d, %v",
				spec, zone, from, to, n, last, len(want), wantLast)
		}
	}
}

// A schedule that parses has ticks that advance, count as one each, and are the same when it is parsed again.
func FuzzParseSchedule(f *testing.F) {
	for _, seed := range []struct{ spec, zone string }{
		{"0 30 2 * * *", "Europe/Berlin"},
		{"*/7 5-50/9,3 ?/1 31 FEB-nov,12 MON-5", "Australia/Lord_Howe"},
		{"0 *-11 2,, +3 */2 ~", "Africa/Cairo"},
		{"CRON_TZ=Pacific/Apia ~ ~ ~ ~ ~ *", "UTC"},
		{"TZ= @weekly", "UTC"},
		{"TZ=UTC", "UTC"},
		{"@every 1h30m0.5s", "UTC"},
		{"@every -1ns", "UTC"},
		{"@at 2037-01-01T00:00:00.5+02:30", "UTC"},
		{"@manually", "../UTC"},
	} {
		f.Add(seed.spec, seed.zone, "job", int64(2_234_567_890))
	}
	f.Fuzz(func(t *testing.T, spec, zone, name string, unix int64) {
		s, err := parseSchedule(spec, zone, name)
		if err != nil {
			if text := err.Error(); strings.HasSuffix(text, ".") {
				t.Fatalf("%q: error %q ends in a period", spec, text)
			}
			return
		}
		after := time.Unix(unix%10_000_000_000, 0)
		ticks := nextTicks(s, after)
		previous := after
		for _, tick := range ticks {
			if !tick.After(previous) {
				t.Fatalf("%q in %s after %v: got %v, want a later tick", spec, zone, previous, tick)
			}
			if n, last := s.count(previous, tick); n != 1 || !last.Equal(tick) {
				t.Fatalf("%q in %s: count from %v to %v: got %d, last %v", spec, zone, previous, tick, n, last)
			}
			previous = tick
		}
		again := mustParseSchedule(t, spec, zone, name)
		if got := nextTicks(again, after); !slices.EqualFunc(ticks, got, time.Time.Equal) {
			t.Fatalf("%q in %s after %v: got %v, then %v", spec, zone, after, ticks, got)
		}
	})
}

// nextTicks returns up to five ticks after a time.
func nextTicks(s schedule, after time.Time) []time.Time {
	var ticks []time.Time
	for at := s.next(after); !at.IsZero() && len(ticks) < 5; at = s.next(at) {
		ticks = append(ticks, at)
	}
	return ticks
}

func BenchmarkSchedule_next(b *testing.B) {
	for _, spec := range []string{
		"* * * * * *", "0 */5 * * * *", "0 30 4 * * *", "0 0 0 29 2 *", "0 0 0 31 6 *", "@every 1m",
	} {
		b.Run(spec, func(b *testing.B) {
			s := mustParseSchedule(b, spec, "Europe/Berlin", "job")
			after := rfc3339(b, "2025-03-01T12:00:00Z")
			b.ReportAllocs()
			for b.Loop() {
				s.next(after)
			}
		})
	}
}

func BenchmarkSchedule_count(b *testing.B) {
	s := mustParseSchedule(b, "* * * * * *", "Europe/Berlin", "job")
	from, to := rfc3339(b, "2025-01-01T00:00:00Z"), rfc3339(b, "2030-01-01T00:00:00Z")
	b.ReportAllocs()
	for b.Loop() {
		s.count(from, to)
	}
}

func BenchmarkParseSchedule(b *testing.B) {
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			mustParseSchedule(b, "0 ~ 4 * * mon-fri", "Europe/Berlin", "job")
		}
	})
	b.Run("new", func(b *testing.B) {
		loc, err := loadZone("Europe/Berlin")
		if err != nil {
			b.Fatal(err)
		}
		key := calendarKey{zone: loc, text: [fieldCount]string{"0", "*/5", "4", "*", "*", "mon-fri"}}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := newCalendar(key); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// ---- The rules, simulated

// The simulation of one server's rules. From one seed it drives the real store
// and the real scheduler, one event after the other in one goroutine, on a
// clock of its own: jobs come, change and go; nodes take orders, run, die with
// runs in flight and come back, lose messages, repeat them, deliver them late;
// the server dies between any two steps of a write, or loses and regains its
// office; clocks jump. A ledger keeps account of each log entry, and in the end
// everything is healed and must come to rest with nothing lost.

var (
	rulesSeeds = flag.Int("rules.seeds", 200, "random lives of a server to simulate")
	rulesSeed  = flag.Uint64("rules.seed", 0, "the one seed to simulate; 0 takes the seeds from 1 on")
)

const (
	lifeEvents = 250 // of chaos, in one life
	simJobs    = 7   // names of jobs
	traceLines = 80  // of a trace, that a failure prints
)

// TestRules_Simulation: whatever happens, every tick of an enabled job has one
// outcome, nothing starts twice, nothing that was acknowledged is lost, and
// when all is healed nothing stays unfinished.
func TestRules_Simulation(t *testing.T) {
	if *rulesSeed != 0 {
		simulate(t, *rulesSeed)
		return
	}
	for seed := uint64(1); seed <= uint64(*rulesSeeds); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed)
		})
	}
}

// TestRules_Deterministic: the same seed is the same life, or a failure could
// not be repeated.
func TestRules_Deterministic(t *testing.T) {
	first, second := simulate(t, 1), simulate(t, 1)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the second life of a seed differs from the first (-first +second):\n%s", diff)
	}
}

// simTempDir is where stores of many tests are quick: in memory, if possible.
func simTempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "belfry-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// crash is what a step panics with when the server's process dies in it.
type crash struct{ where string }

// world is one simulated life.
type world struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	trace []string
	chaos bool // faults may happen

	// The clocks, in nanoseconds: elapsed never jumps, the leader's wall clock
	// is elapsed + skew.
	elapsed, skew int64
	looked        int64 // wall clock at the leader's last look
	asked         int64 // elapsed at the last question about doubts

	dir    string
	store  *store
	sched  *scheduler
	ctx    context.Context // ends with the office
	leave  context.CancelFunc
	term   uint64
	deaths int // of the server
	nested bool
	marks  []requestMark

	nodes  []*modelNode
	late   []lateDispatch // dispatches that are still on their way
	begun  map[int64]bool // executions that a node has started
	ledger *ledger

	model    map[string]*job   // what was acknowledged; nil: not there
	unsure   map[string][]*job // what else may be there, of writes without an answer
	requests []string          // ids of runs by hand that were acknowledged
	idle     int               // numbers request ids and versions
}

// modelNode is a node: what executor does, without running anything.
type modelNode struct {
	name        string
	local       bool // it is part of the server's process
	tags        map[string]string
	incarnation uint64
	known       uint64 // incarnation of the last heartbeat
	heard       int64  // elapsed at the last heartbeat
	up, reached bool
	term, floor uint64
	taken       map[int64]bool
	running     map[int64]*modelRun
	held        map[int64]*modelHeld
}

type modelRun struct{ started, until int64 } // elapsed

type modelHeld struct {
	result
	since int64 // elapsed; what is a second old is on disk
}

type lateDispatch struct {
	node *modelNode
	d    dispatch
}

// simulate lives one life and returns its trace.
func simulate(t *testing.T, seed uint64) []string {
	w := &world{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), chaos: true, dir: simTempDir(t),
		skew: testStart, begun: map[int64]bool{}, ledger: newLedger(), model: map[string]*job{}, unsure: map[string][]*job{},
	}
	defer func() {
		if w.store != nil {
			w.store.close()
		}
	}()
	w.nodes = []*modelNode{{name: "n0", local: true}, {name: "n1", tags: map[string]string{"role": "web"}}, {name: "n2", tags: map[string]string{"role": "web"}}}
	for _, n := range w.nodes {
		n.start(w)
	}
	w.restart()
	for range lifeEvents {
		w.step(w.event)
	}
	w.heal()
	return w.trace
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3fs %+d: ", float64(w.elapsed)/1e9, (w.skew-testStart)/1e9)+fmt.Sprintf(format, args...))
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	tail := w.trace[max(0, len(w.trace)-traceLines):]
	w.t.Fatalf("%s\nthe end of the trace:\n%s\nrepeat it with: go test -run 'TestRules_Simulation$' -rules.seed=%d .",
		fmt.Sprintf(format, args...), strings.Join(tail, "\n"), w.seed)
}

func (w *world) now() int64 { return w.elapsed + w.skew }

// chance is true in percent of all cases while faults may happen.
func (w *world) chance(percent float64) bool { return w.chaos && w.rnd.Float64()*100 < percent }

// step does one thing, in which the server may die or lose its office.
func (w *world) step(do func()) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case crash:
			w.logf("server dies %s", p.where)
			w.die()
		default:
			panic(p)
		}
		if w.store != nil && w.ctx.Err() != nil {
			w.logf("server is out of office and regains it")
			w.recoverOffice()
		}
	}()
	do()
}

// die ends the server's process, and with it the node that it is.
func (w *world) die() {
	w.leave()
	if err := w.store.close(); err != nil {
		w.fatalf("close: %v", err)
	}
	w.store = nil
	w.nodes[0].crash(w)
	if w.chance(30) {
		w.elapsed += w.rnd.Int64N(int64(3 * time.Minute))
	}
	w.nodes[0].start(w)
	w.restart()
}

// restart opens what the disk holds and takes office.
func (w *world) restart() {
	w.deaths++
	var err error
	if w.store, err = openStore(w.dir); err != nil {
		w.fatalf("open: %v", err)
	}
	if w.deaths%8 == 0 {
		if err := w.store.check(); err != nil {
			w.fatalf("check after a restart: %v", err)
		}
	}
	w.sched = newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 15, Timezone: "Europe/Berlin", LostAfter: 30 * time.Second}, w.store, slog.New(slog.NewTextHandler(io.Discard, nil)))
	w.sched.propose, w.sched.nodes, w.sched.start, w.sched.ask = w.propose, w.alive, w.start, w.ask
	w.sched.now = func() time.Time { return timeOf(w.now()) }
	w.sched.chance = w.rnd.Uint64
	w.sched.spawn = func(task func()) { task() }
	w.recoverOffice()
	w.verify()
}

// recoverOffice applies what is in the log and begins a new term.
func (w *world) recoverOffice() {
	w.ctx, w.leave = context.WithCancel(context.Background())
	w.applyAll()
	w.term++
	w.looked, w.marks = w.now(), nil
	w.step(func() {
		if err := w.sched.takeOffice(w.ctx, w.term); err != nil && w.ctx.Err() == nil {
			w.fatalf("taking office: %v", err)
		}
	})
}

// propose is the log: one entry at a time, and death between any two steps.
func (w *world) propose(ctx context.Context, c *command) (applied, error) {
	if err := w.ctx.Err(); err != nil {
		return applied{}, errNotLeader
	}
	if c.Put != nil && w.chance(40) {
		// A tick is decided between the moment a write was computed and the
		// moment it is appended.
		w.meanwhile(func() {
			if wait := w.nextDue() - w.now(); wait > 0 && wait < int64(2*time.Second) {
				w.elapsed += wait
			}
			w.fire()
		})
	}
	for _, cl := range c.Close {
		w.checkClosing(cl)
	}
	if c.Trim != nil && c.Trim.Requests > 0 {
		w.requests = nil // jumps of the only clock here make ten minutes of nothing
	}
	data, err := c.encode()
	if err != nil {
		w.fatalf("encode: %v", err)
	}
	if w.chance(0.7) {
		panic(crash{"before a write"})
	}
	end := w.store.logFirst + uint64(len(w.store.logBytes))
	if err := w.store.persist(nil, []entry{{Index: end, Term: w.term, Kind: entryCommand, Data: data}}); err != nil {
		w.fatalf("persist: %v", err)
	}
	switch {
	case w.chance(0.7):
		panic(crash{"between log and apply"})
	case w.chance(0.5):
		w.leave()
		return applied{}, errUnknown
	}
	res := w.applyAll()
	if w.chance(0.7) {
		panic(crash{"before an answer"})
	}
	if res.Err == errUndecided {
		w.meanwhile(w.fire)
	}
	if c.Close == nil && c.Done == nil && w.chance(5) {
		// The nodes are asked between the moment a run was accepted and the
		// moment it is dispatched.
		w.meanwhile(func() { w.excuse(w.sched.askNodes(w.ctx)) })
	}
	return res, res.Err
}

// meanwhile does what another goroutine of the leader may do at this moment.
func (w *world) meanwhile(do func()) {
	if !w.nested {
		w.nested = true
		defer func() { w.nested = false }()
		do()
	}
}

// checkClosing expects that nothing is closed which its node may still start:
// the process that it was given to is gone, or it is too late or in vain to
// order it again.
func (w *world) checkClosing(c closing) {
	r := w.ledger.started[c.Execution]
	gone := w.ledger.gone(w.store, r.job)
	switch i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.incarnation == c.Incarnation }); {
	case i < 0 || gone || r.ended || c.Outcome == outcomeLost:
	case c.Outcome == outcomeMissed && !w.nodes[i].up: // it took no connection
	case c.Outcome == outcomeMissed && r.cause == causeTick && r.due < w.now()-int64(time.Minute):
	default:
		w.fatalf("execution %d is closed as %s, and the process of %s that it was given to lives", c.Execution, c.Outcome, w.nodes[i].name)
	}
}

// applyAll applies what is persisted, entry by entry, and has the ledger look
// at each.
func (w *world) applyAll() (last applied) {
	for len(w.store.unapplied) > 0 {
		e := w.store.unapplied[0]
		results, err := w.store.apply(e.Index)
		if err != nil {
			w.fatalf("apply: %v", err)
		}
		last = results[0]
		if err := w.ledger.observe(w.store, e, last); err != nil {
			w.fatalf("%v", err)
		}
	}
	return last
}

// look is what the leader does when it wakes.
func (w *world) look() {
	from := timeOf(w.looked)
	w.looked = w.now()
	if err := w.sched.noticeGap(w.ctx, from, timeOf(w.now())); err != nil && w.ctx.Err() == nil {
		w.fatalf("looking at the clock: %v", err)
	}
	w.fire()
}

// fire is fireDue, one part after the other.
func (w *world) fire() {
	m := w.sched.moment()
	jobs, pending := w.sched.popDue(m.now)
	for ids := range slices.Chunk(jobs, 1+w.rnd.IntN(5)) {
		w.excuse(w.sched.fireTicks(w.ctx, m, ids))
	}
	for ids := range slices.Chunk(pending, 1+w.rnd.IntN(5)) {
		w.excuse(w.sched.firePending(w.ctx, m, ids))
	}
}

// excuse accepts errors of a leader that has just lost its office.
func (w *world) excuse(err error) {
	w.t.Helper()
	if err != nil && w.ctx.Err() == nil {
		w.fatalf("the leader fails: %v", err)
	}
}

// pass lets time go by as it does for a leader that is awake.
func (w *world) pass(d int64) {
	for d > 0 {
		hop := min(d, int64(tickSlack))
		if next := w.nextDue() - w.now(); next > 0 && next < hop {
			hop = next
		}
		d -= hop
		w.elapsed += hop
		for _, n := range w.nodes {
			n.work(w)
		}
		w.look()
		if w.elapsed-w.asked >= int64(doubtPause) {
			w.asked = w.elapsed
			w.excuse(w.sched.askNodes(w.ctx))
		}
		if w.ctx.Err() != nil {
			return
		}
	}
}

func (w *world) nextDue() int64 {
	if len(w.sched.queue) == 0 {
		return math.MaxInt64
	}
	return w.sched.queue[0].at
}

// event is one random thing that happens.
func (w *world) event() {
	n := w.nodes[w.rnd.IntN(len(w.nodes))]
	switch p := w.rnd.IntN(100); {
	case p < 45:
		w.pass(w.rnd.Int64N(int64(1500 * time.Millisecond)))
	case p < 60:
		w.put()
	case p < 64:
		w.toggle()
	case p < 67:
		w.remove()
	case p < 75:
		w.run()
	case p < 87:
		n.deliver(w)
	case p < 90:
		w.deliverLate()
	case p < 93 && !n.local:
		w.logf("%s: up %v, reached %v, is restarted or cut off", n.name, n.up, n.reached)
		n.disturb(w)
	case p < 95:
		now := timeOf(w.now())
		marks, err := w.sched.markRequests(w.marks, now)
		w.excuse(err)
		w.marks = marks
		w.excuse(w.sched.trim(w.ctx, expired(marks, now), now, w.rnd.IntN(4) == 0))
	case p < 96:
		panic(crash{"for no reason"})
	case p < 97:
		w.leave()
	case p < 98:
		w.skew += w.rnd.Int64N(int64(2 * time.Hour))
		w.logf("clock jumps ahead")
		w.look()
	case p < 99:
		w.skew -= w.rnd.Int64N(int64(3 * time.Hour))
		w.logf("clock jumps back")
		w.look()
	default:
		w.pass(int64(20 * time.Second))
	}
}

// ---- What clients do

func (w *world) name() string { return fmt.Sprintf("job-%d", w.rnd.IntN(simJobs)) }

func (w *world) request() request {
	w.idle++
	return request{Actor: actorAnonymous, ID: fmt.Sprint("request ", w.idle)}
}

func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

// randomJob is a new definition for a name.
func (w *world) randomJob(name string) job {
	w.idle++
	j := job{Name: name, Executor: executorShell, Metadata: map[string]string{"version": fmt.Sprint(w.idle)}, Concurrency: pick(w.rnd, concurrencyAllow, concurrencyForbid)}
	j.Schedule = pick(w.rnd, "@every 1s", "@every 2s", "@every 7s", "*/2 * * * * *", "*/5 * * * * *", "0 * * * * *", "30 */10 * * * *", "@manually", "@minutely",
		"@at "+timeOf(w.now()+w.rnd.Int64N(int64(time.Minute))).Format(time.RFC3339))
	j.Retries = pick[uint](w.rnd, 0, 0, 1, 2)
	j.Tags = pick(w.rnd, nil, map[string]string{"role": "web"}, map[string]string{"role": "web:1"}, map[string]string{"role": "none"}, map[string]string{"own": "n0"})
	j.Ephemeral = w.rnd.IntN(10) == 0
	j.Disabled = w.rnd.IntN(10) == 0
	switch w.rnd.IntN(8) {
	case 0:
		j.ParentJob = w.name()
	case 1:
		j.StartsAt = instant(w.now() + w.rnd.Int64N(int64(time.Minute)))
	case 2:
		j.ExpiresAt = instant(w.now() + w.rnd.Int64N(int64(time.Minute)))
	}
	return j
}

// write does one write of a job and keeps account of what may be there now.
func (w *world) write(name string, after *job, do func() error) {
	w.unsure[name] = append(w.unsure[name], after) // if it gets no answer
	err := do()
	var r refusal
	var bad badInput
	switch {
	case err == nil:
		w.model[name], w.unsure[name] = after, nil
	case errors.As(err, &r) || errors.As(err, &bad) || errors.Is(err, errNotLeader):
		w.unsure[name] = w.unsure[name][:len(w.unsure[name])-1]
	case errors.Is(err, errUnknown):
	default:
		w.fatalf("a write of %s: %v", name, err)
	}
}

func (w *world) put() {
	name := w.name()
	j := w.randomJob(name)
	if old := w.model[name]; old != nil && w.rnd.IntN(3) == 0 {
		kept := *old // only what does not decide when it is due
		kept.Metadata, kept.Retries, kept.Concurrency = j.Metadata, j.Retries, j.Concurrency
		j = kept
	}
	w.write(name, &j, func() error {
		row, _, err := w.sched.put(context.Background(), w.request(), j)
		w.logf("put %s %q disabled=%v parent=%q tags=%v ephemeral=%v %s retries=%d: %v", name, j.Schedule, j.Disabled, j.ParentJob, j.Tags, j.Ephemeral, j.Concurrency, j.Retries, err)
		if err == nil {
			w.logf("  next %v", row.Next)
		}
		return err
	})
}

func (w *world) toggle() {
	name := w.name()
	w.settleUnsure(name)
	after := w.model[name]
	if after != nil {
		turned := *after
		turned.Disabled = !turned.Disabled
		after = &turned
	}
	w.write(name, after, func() error {
		_, _, err := w.sched.toggle(context.Background(), w.request(), name)
		w.logf("toggle %s: %v", name, err)
		return err
	})
}

func (w *world) remove() {
	name := w.name()
	w.write(name, nil, func() error {
		_, _, err := w.sched.delete(context.Background(), w.request(), name)
		w.logf("delete %s: %v", name, err)
		return err
	})
}

// run starts a job by hand, sometimes with a request that was accepted before.
func (w *world) run() {
	req, repeated := w.request(), false
	if len(w.requests) > 0 && w.rnd.IntN(4) == 0 {
		req.ID, repeated = w.requests[w.rnd.IntN(len(w.requests))], true
	}
	name := w.name()
	before := len(w.ledger.started)
	row, res, err := w.sched.runNow(context.Background(), req, name)
	w.logf("run %s %q: started %v, refused %q: %v", name, req.ID, res.Started, res.Refused, err)
	switch {
	case err != nil:
	case repeated && !res.Repeated:
		w.fatalf("request %q was accepted twice", req.ID)
	case repeated && len(w.ledger.started) != before:
		w.fatalf("request %q started something again", req.ID)
	case !repeated && res.Repeated:
		w.fatalf("request %q is new and was taken for a repetition", req.ID)
	case !repeated:
		w.requests = append(w.requests, req.ID)
		if res.Refused == "" && len(res.Started[0]) == 0 {
			w.fatalf("a run of %s by hand was accepted and started nothing", row.Name)
		}
	}
}

// verify compares what is there with what was acknowledged.
func (w *world) verify() {
	for i := range simJobs {
		w.settleUnsure(fmt.Sprintf("job-%d", i))
	}
}

// settleUnsure finds out which of the writes without an answer were done.
func (w *world) settleUnsure(name string) {
	if len(w.ledger.jobs) == 0 || w.ctx.Err() != nil {
		return
	}
	var have *job
	row, err := w.store.job(name)
	switch {
	case err == nil:
		j, err := row.definition()
		if err != nil {
			w.fatalf("%v", err)
		}
		have = &j
	case !errors.Is(err, errNoJob):
		w.fatalf("%v", err)
	}
	want := append([]*job{w.model[name]}, w.unsure[name]...)
	if slices.ContainsFunc(want, func(j *job) bool { return j != nil && j.Ephemeral }) {
		want = append(want, nil) // its success has deleted it
	}
	for _, j := range want {
		if cmp.Equal(have, j, cmpopts.EquateEmpty()) {
			w.model[name], w.unsure[name] = j, nil
			return
		}
	}
	w.fatalf("job %s is %+v, want one of %+v (-want +have)\n%s", name, have, want, cmp.Diff(want[0], have))
}

// ---- What nodes do

// alive are the nodes that have been heard of lately.
func (w *world) alive() []node {
	var list []node
	for _, n := range w.nodes {
		if n.local || w.elapsed-n.heard < int64(nodeFailed) {
			tags := map[string]string{"own": n.name}
			maps.Copy(tags, n.tags)
			list = append(list, node{n.name, n.known, tags})
		}
	}
	return list
}

func (w *world) node(name string) *modelNode {
	i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.name == name })
	return w.nodes[i]
}

var errUnreached = errors.New("no answer")

// start carries a dispatch to a node: or not, or later, or without the answer.
func (w *world) start(name string, d dispatch) error {
	n := w.node(name)
	switch {
	case w.chance(0.5):
		panic(crash{"before a dispatch"})
	case n.local:
		return n.refuse(w, d)
	case !n.up:
		return fmt.Errorf("%w: %w", errRefused, errNoConnection)
	case !n.reached || w.chance(3):
		return errUnreached
	case w.chance(3):
		w.late = append(w.late, lateDispatch{n, d})
		return errUnreached
	}
	if err := n.refuse(w, d); err != nil || !w.chance(3) {
		return err
	}
	return errUnreached
}

// refuse is take with errors that say so.
func (n *modelNode) refuse(w *world, d dispatch) error {
	if err := n.take(w, d); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}

func (w *world) deliverLate() {
	if len(w.late) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.late))
	l := w.late[i]
	w.late = slices.Delete(w.late, i, i+1)
	if l.node.up {
		w.logf("%s: a late dispatch arrives: %v", l.node.name, l.node.take(w, l.d))
	}
}

func (w *world) ask(name string, q question) (answer, error) {
	n := w.node(name)
	if !n.up || !n.local && (!n.reached || w.chance(5)) {
		return answer{}, errUnreached
	}
	if q.Term < n.term {
		return answer{}, errStaleTerm
	}
	n.hear(q.Term, q.Number)
	a := answer{Incarnation: n.incarnation}
	for _, id := range q.Executions {
		if n.running[id] != nil {
			a.Running = append(a.Running, id)
		} else if h := n.held[id]; h != nil {
			a.Held = append(a.Held, h.result)
		}
	}
	w.logf("%s is asked for %v: runs %v, holds %d", name, q.Executions, a.Running, len(a.Held))
	return a, nil
}

func (n *modelNode) hear(term, floor uint64) {
	if term > n.term {
		n.term, n.floor = term, 0
	}
	n.floor = max(n.floor, floor)
}

// start begins a new process of the node. What it held on disk it holds again.
func (n *modelNode) start(w *world) {
	n.incarnation = w.rnd.Uint64() | 1
	n.up, n.reached, n.term, n.floor = true, true, 0, 0
	n.taken, n.running = map[int64]bool{}, map[int64]*modelRun{}
	if n.held == nil {
		n.held = map[int64]*modelHeld{}
	}
	for id := range n.held {
		n.taken[id] = true
	}
	n.known, n.heard = n.incarnation, w.elapsed
}

// crash loses what runs, and results that had no time to reach the disk.
func (n *modelNode) crash(w *world) {
	n.up = false
	for _, id := range slices.Sorted(maps.Keys(n.held)) {
		if w.elapsed-n.held[id].since < int64(diskAfter) {
			delete(n.held, id)
		}
	}
}

func (n *modelNode) disturb(w *world) {
	switch {
	case !n.up:
		n.start(w)
	case w.rnd.IntN(2) == 0:
		n.reached = !n.reached
	default:
		n.crash(w)
		if w.rnd.IntN(2) == 0 {
			heard, known := n.heard, n.known
			n.start(w)
			n.heard, n.known = heard, known // the leader does not know yet
		}
	}
}

// take is executor.start.
func (n *modelNode) take(w *world, d dispatch) error {
	switch {
	case d.Term < n.term:
		return errStaleTerm
	case d.Incarnation != n.incarnation:
		n.hear(d.Term, 0)
		return errOtherIncarnation
	}
	n.hear(d.Term, 0)
	if d.Number < n.floor {
		return errStaleNumber
	}
	for _, o := range d.Orders {
		if !n.taken[o.Execution] {
			n.taken[o.Execution] = true
			n.begin(w, o)
		}
	}
	return nil
}

// begin starts a run and expects that nobody has started it before, and that
// it is on record as what its order says.
func (n *modelNode) begin(w *world, o order) {
	w.logf("%s: begins %d of %s, attempt %d, due %d", n.name, o.Execution, o.Job, o.Attempt, o.ScheduledAt)
	if w.begun[o.Execution] {
		w.fatalf("execution %d of %s starts a second time, on %s", o.Execution, o.Job, n.name)
	}
	w.begun[o.Execution] = true
	r, ok := w.ledger.started[o.Execution]
	if !ok || r.ended {
		w.fatalf("execution %d of %s starts on %s, but on record it has %+v", o.Execution, o.Job, n.name, r)
	}
	if got, want := (startedRun{job: r.job, group: o.Group, due: o.ScheduledAt, slot: r.slot, attempt: o.Attempt, cause: r.cause}), r; got != want {
		w.fatalf("execution %d of %s is ordered as %+v, want %+v", o.Execution, o.Job, got, want)
	}
	for id, other := range w.ledger.started {
		if id != o.Execution && other.group == r.group && other.slot == r.slot && other.attempt == r.attempt {
			w.fatalf("execution %d is attempt %d of slot %d, and so is %d", o.Execution, r.attempt, r.slot, id)
		}
	}
	length := w.rnd.Int64N(int64(4 * time.Second))
	if !w.chaos {
		length /= 20
	}
	n.running[o.Execution] = &modelRun{started: w.elapsed, until: w.elapsed + length}
}

// work ends runs whose time has come, sends a heartbeat, and delivers.
func (n *modelNode) work(w *world) {
	if !n.up {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(n.running)) {
		r := n.running[id]
		if r.until > w.elapsed {
			continue
		}
		outcome := outcomeSuccess
		if w.chance(30) {
			outcome = outcomeFailed
		}
		delete(n.running, id)
		n.held[id] = &modelHeld{result{Execution: id, Started: r.started + w.skew, Finished: r.until + w.skew, Outcome: outcome, Output: []byte(outcome)}, w.elapsed}
		w.logf("%s: %d ends: %s", n.name, id, outcome)
	}
	if n.reached && !w.chance(20) {
		n.known, n.heard = n.incarnation, w.elapsed
	}
	if !w.chance(60) {
		n.deliver(w)
	}
}

// deliver hands some results to the leader. The acknowledgement may be lost.
func (n *modelNode) deliver(w *world) {
	if !n.up || !n.reached && !n.local || len(n.held) == 0 || w.ctx.Err() != nil {
		return
	}
	ids := slices.Sorted(maps.Keys(n.held))
	w.rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	var batch []result
	for _, id := range ids[:1+w.rnd.IntN(len(ids))] {
		batch = append(batch, n.held[id].result)
		if w.chance(3) {
			batch = append(batch, n.held[id].result)
		}
	}
	taken, err := w.sched.report(w.ctx, batch)
	w.excuse(err)
	if !n.local && w.chance(10) {
		return
	}
	for _, id := range taken {
		delete(n.held, id)
	}
}

// ---- The end

// heal ends all faults and expects that everything comes to rest: first with
// the jobs going on, then with all of them disabled.
func (w *world) heal() {
	w.logf("all is healed")
	w.chaos, w.late = false, nil
	for _, n := range w.nodes {
		if !n.up {
			n.start(w)
		}
		n.reached = true
	}
	w.step(func() { w.pass(int64(10 * time.Second)) })
	w.verify()
	for i := range simJobs {
		name := fmt.Sprintf("job-%d", i)
		if j := w.model[name]; j != nil && !j.Disabled {
			row, _, err := w.sched.toggle(context.Background(), w.request(), name)
			if err != nil && !j.Ephemeral {
				w.fatalf("disabling %s: %v", name, err)
			}
			if err == nil && !row.Disabled {
				w.fatalf("toggling %s, which was enabled, made it %+v", name, row)
			}
		}
	}
	w.step(func() { w.pass(int64(retryWaitMax + 10*time.Second)) })
	if rows, err := w.store.unfinishedExecutions(); err != nil || len(rows) > 0 {
		w.fatalf("unfinished although all is healed: %+v, %v", rows, err)
	}
	if rows, err := w.store.pending(0); err != nil || len(rows) > 0 {
		w.fatalf("pending although all is healed: %+v, %v", rows, err)
	}
	for _, n := range w.nodes {
		if len(n.running)+len(n.held) > 0 {
			w.fatalf("%s still runs or holds something: %v %v", n.name, n.running, n.held)
		}
	}
	if err := w.ledger.settled(w.store, w.now()); err != nil {
		w.fatalf("%v", err)
	}
	if err := w.store.check(); err != nil {
		w.fatalf("%v", err)
	}
}

// A ledger follows a log beside the store and keeps its own account of what
// must come of it: every tick of an enabled job is decided exactly once and in
// order, every pending row is consumed exactly once, and every execution ends
// at most once. It shares the schedule dialect with the product, and no rule.
type ledger struct {
	zone      string
	jobs      map[int64]*ledgerJob
	pending   map[int64]bool       // rows that wait
	started   map[int64]startedRun // every execution that was ever accepted
	running   map[int64]bool       // those of them that have not ended
	decisions map[tickKey]uint64   // tick → log index of what became of it
}

// ledgerJob is what the ledger expects of a job that is not deleted.
type ledgerJob struct {
	def     job
	next    int64 // the tick that must be decided next
	fired   int64 // the last one that was
	ticks   int64 // decided so far
	resets  int   // times that a wrong clock was set back
	deleted bool
}

// startedRun identifies an execution for whoever asks whether it came twice.
type startedRun struct {
	job, group, due int64
	slot, attempt   int
	cause           string
	ended           bool
}

// tickKey names a tick. A tick may come again after a wrong clock was set back.
type tickKey struct {
	job, due int64
	resets   int
}

func newLedger() *ledger {
	return &ledger{jobs: map[int64]*ledgerJob{}, pending: map[int64]bool{}, started: map[int64]startedRun{}, running: map[int64]bool{}, decisions: map[tickKey]uint64{}}
}

// observe takes note of one entry that the store has just applied. s is the
// store as it is then; the caller owns its writing side.
func (l *ledger) observe(s *store, e entry, res applied) error {
	if e.Kind != entryCommand || res.Err != nil || res.Repeated {
		return nil
	}
	c, err := decodeCommand(e.Data)
	if err != nil {
		return err
	}
	switch {
	case c.Found != nil:
		l.zone = c.Found.Timezone
	case c.Put != nil:
		for i, p := range c.Put {
			err = orElse(err, l.put(c.Now, p, res.Jobs[i]))
		}
	case c.Delete != nil:
		l.jobs[c.Delete.ID].deleted = true
	case c.Decide != nil:
		for i, d := range c.Decide {
			if res.Accepted[i] {
				err = orElse(err, l.decide(e.Index, c.Now, d, res.Started[i]))
			}
		}
	case c.Reset != nil:
		err = l.reset(s, c)
	}
	if err = orElse(err, l.followPending(s, c, res)); err == nil {
		err = l.followExecutions(s, c)
	}
	if err != nil {
		return fmt.Errorf("log entry %d: %w", e.Index, err)
	}
	return nil
}

func orElse(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (l *ledger) put(now int64, p jobPut, id int64) error {
	j := l.jobs[id]
	switch {
	case j == nil:
		j = &ledgerJob{next: never}
		l.jobs[id] = j
	case p.Keep:
		j.def = p.Job
		return nil
	case j.def.armed() && j.next != never && j.next <= now:
		return fmt.Errorf("job %s was changed at %d while its tick %d was undecided", p.Job.Name, now, j.next)
	}
	j.def, j.next = p.Job, p.Next
	if !p.Job.armed() || p.Next == never {
		return nil
	}
	after := max(now, j.fired)
	if p.Next <= after {
		return fmt.Errorf("job %s: next is %d after a change at %d with %d decided", p.Job.Name, p.Next, now, j.fired)
	}
	s := p.Job.schedule(l.zone)
	if want := nanosOf(s.next(timeOf(after))); p.Job.StartsAt == 0 && s.calendar != nil && want != p.Next {
		return fmt.Errorf("job %s: next is %d, want the first tick %d behind %d", p.Job.Name, p.Next, want, after)
	}
	return nil
}

// decide walks the ticks of a decision one by one.
func (l *ledger) decide(index uint64, now int64, d decision, started []int64) error {
	j := l.jobs[d.Job]
	switch {
	case j == nil || j.deleted:
		return fmt.Errorf("a tick of job %d, which is not there, was accepted", d.Job)
	case !j.def.armed():
		return fmt.Errorf("tick %d of %s was accepted, which is not enabled", d.Due, j.def.Name)
	case d.Due != j.next:
		return fmt.Errorf("tick %d of %s was accepted, want %d", d.Due, j.def.Name, j.next)
	case max(d.Due, d.Until) > now:
		return fmt.Errorf("tick %d of %s was decided before it was due", max(d.Due, d.Until), j.def.Name)
	}
	s, due, n := j.def.schedule(l.zone), d.Due, int64(0)
	for ; due != never && due <= max(d.Due, d.Until); due = j.def.within(s.next(timeOf(due))) {
		k := tickKey{d.Job, due, j.resets}
		if at, ok := l.decisions[k]; ok {
			return fmt.Errorf("tick %d of %s has a second outcome, the first is that of entry %d", due, j.def.Name, at)
		}
		l.decisions[k] = index
		j.fired = due
		n++
	}
	if n != max(1, d.Count) {
		return fmt.Errorf("a decision of %s counts %d ticks from %d to %d, want %d", j.def.Name, max(1, d.Count), d.Due, d.Until, n)
	}
	if d.Next != due {
		return fmt.Errorf("the tick of %s behind %d is said to be %d, want %d", j.def.Name, j.fired, d.Next, due)
	}
	if len(started) != 0 && len(started) != len(d.Targets) {
		return fmt.Errorf("tick %d of %s started %d executions for %d nodes", d.Due, j.def.Name, len(started), len(d.Targets))
	}
	j.ticks += n
	j.next = due
	return nil
}

// reset accepts what the command says, of those jobs that it fits.
func (l *ledger) reset(s *store, c *command) error {
	for _, r := range c.Reset {
		var fired int64
		if err := s.get("SELECT coalesce((SELECT fired FROM job_state WHERE job = ?), 0)", []any{r.Job}, &fired); err != nil {
			return err
		}
		j := l.jobs[r.Job]
		if j == nil || j.deleted || j.fired != r.Fired || fired != c.Now {
			continue
		}
		if r.Fired <= c.Now {
			return fmt.Errorf("job %s was set back to %d from %d, which is no future", j.def.Name, c.Now, r.Fired)
		}
		j.fired, j.next = c.Now, r.Next
		j.resets++
	}
	return nil
}

// followPending compares the rows that wait with those that waited before.
func (l *ledger) followPending(s *store, c *command, res applied) error {
	waits := map[int64]bool{}
	err := s.each("SELECT id, job FROM pending", nil, func(scan scanner) error {
		var id, job int64
		err := scan(&id, &job)
		waits[id] = true
		if !l.pending[id] && c.Done == nil && c.Close == nil {
			return fmt.Errorf("pending row %d appeared out of nothing", id)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, d := range c.Run {
		switch {
		case d.Pending == 0:
		case !l.pending[d.Pending] && len(res.Started[i]) > 0:
			return fmt.Errorf("pending row %d was consumed a second time", d.Pending)
		case l.pending[d.Pending] && res.Accepted[i] && waits[d.Pending]:
			return fmt.Errorf("pending row %d was decided and waits still", d.Pending)
		case l.pending[d.Pending] && res.Accepted[i] && len(res.Started[i]) == 0:
			if err := l.recorded(s, res.Index); err != nil {
				return fmt.Errorf("pending row %d: %w", d.Pending, err)
			}
		}
		if res.Accepted[i] {
			delete(l.pending, d.Pending)
		}
	}
	for id := range l.pending {
		if !waits[id] && c.Delete == nil && c.Done == nil && c.Close == nil {
			return fmt.Errorf("pending row %d vanished without an outcome", id)
		}
	}
	l.pending = waits
	return nil
}

// recorded expects a skip on record among the keys of a log index.
func (l *ledger) recorded(s *store, index uint64) error {
	var n int
	err := s.get("SELECT count(*) FROM ticks WHERE id >= ? AND id < ?", []any{key(index, 0), key(index+1, 0)}, &n)
	if err == nil && n == 0 {
		err = fmt.Errorf("neither a run nor a skip came of it")
	}
	return err
}

// followExecutions takes note of what began and ended.
func (l *ledger) followExecutions(s *store, c *command) error {
	if c.Decide == nil && c.Run == nil && c.Done == nil && c.Close == nil {
		return nil
	}
	unfinished := map[int64]bool{}
	err := s.each("SELECT id, job, grp, slot, attempt, due, cause FROM executions WHERE finished = 0 ORDER BY id", nil, func(scan scanner) error {
		var id int64
		var r startedRun
		if err := scan(&id, &r.job, &r.group, &r.slot, &r.attempt, &r.due, &r.cause); err != nil {
			return err
		}
		unfinished[id] = true
		if was, ok := l.started[id]; ok && was.ended {
			return fmt.Errorf("execution %d ended and is unfinished again", id)
		}
		l.started[id], l.running[id] = r, true
		return nil
	})
	if err != nil {
		return err
	}
	for id := range l.running {
		if unfinished[id] {
			continue
		}
		if c.Done == nil && c.Close == nil {
			return fmt.Errorf("execution %d ended without a word of anybody", id)
		}
		r := l.started[id]
		r.ended = true
		l.started[id] = r
		delete(l.running, id)
	}
	return nil
}

// settled expects that nothing is due and undecided at now, that nothing waits
// or runs, and that the store has an outcome on record for each tick.
func (l *ledger) settled(s *store, now int64) error {
	for _, id := range slices.Sorted(maps.Keys(l.jobs)) {
		j := l.jobs[id]
		if l.gone(s, id) {
			continue
		}
		if j.def.armed() && j.next != never && j.next <= now {
			return fmt.Errorf("tick %d of %s was due at %d and has no outcome", j.next, j.def.Name, now)
		}
		var n int64
		err := s.get(`SELECT (SELECT count(*) FROM executions WHERE job = ?1 AND cause = 'tick' AND id = grp) + (SELECT coalesce(sum(count), 0) FROM ticks WHERE job = ?1 AND cause = 'tick')
			+ (SELECT coalesce(sum(ran + late + skipped + missed), 0) FROM tick_days WHERE job = ?1)`, []any{id}, &n)
		if err != nil {
			return err
		}
		if n != j.ticks {
			return fmt.Errorf("job %s has %d outcomes of ticks on record, want %d", j.def.Name, n, j.ticks)
		}
	}
	return nil
}

// gone reports whether a job was deleted, by somebody or by its own success.
func (l *ledger) gone(s *store, id int64) bool {
	var n int
	return s.get("SELECT count(*) FROM jobs WHERE id = ? AND deleted = 0", []any{id}, &n) != nil || n == 0
}

// TestScheduler_SlowRefusal: a first try can be long on its way, until after
// its node counts as failed and was asked. Whether it is refused before the
// node answers that it knows nothing of the run, or after that, one node gets it.
func TestScheduler_SlowRefusal(t *testing.T) {
	for _, c := range []struct {
		name        string
		answerFirst bool
		want        map[string]int // node → orders that it took
	}{
		{"BeforeTheAnswer", false, map[string]int{"n2": 1}},
		{"AfterTheAnswer", true, map[string]int{"n1": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testSlowRefusal(t, c.answerFirst, c.want) })
		})
	}
}

func testSlowRefusal(t *testing.T, answerFirst bool, want map[string]int) {
	st, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards what follows
	alive := []node{{"n1", 1, map[string]string{"role": "x"}}}
	taken, tries := map[string]int{}, 0
	refusal, answered := make(chan struct{}), make(chan struct{})

	sched := newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 100, Timezone: "UTC", LostAfter: time.Minute}, st, slog.New(slog.DiscardHandler))
	s := &testServer{t: t, api: &api{store: st, scheduler: sched, leading: func() bool { return true }, log: sched.log}}
	s.handler = s.api.handler()
	sched.propose = s.propose
	sched.nodes = func() []node {
		mu.Lock()
		defer mu.Unlock()
		return alive
	}
	sched.start = func(name string, d dispatch) error {
		mu.Lock()
		tries++
		if first := tries == 1; first {
			mu.Unlock()
			<-refusal
			return fmt.Errorf("%w: %w", errRefused, errNoConnection)
		}
		defer mu.Unlock()
		taken[name] += len(d.Orders)
		return nil
	}
	sched.ask = func(name string, q question) (answer, error) {
		if name == "n1" {
			<-answered
		}
		mu.Lock()
		defer mu.Unlock()
		a := answer{Incarnation: map[string]uint64{"n1": 1, "n2": 2}[name]}
		if taken[name] > 0 {
			a.Running = q.Executions
		}
		return a, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- sched.lead(ctx, 1) }()
	synctest.Wait()

	for _, w := range [][2]string{
		{"/v1/jobs", `{"name":"a","schedule":"@manually","executor":"shell","executor_config":{"command":"true"},"tags":{"role":"x:1"}}`},
		{"/v1/jobs/a/run", ""},
	} {
		if res := s.do("POST", w[0], w[1]); res.Code/100 != 2 {
			t.Fatalf("POST %s %s: %d, %s", w[0], w[1], res.Code, res.Body)
		}
	}
	mu.Lock()
	alive = []node{{"n2", 2, map[string]string{"role": "x"}}}
	mu.Unlock()
	wait(2 * doubtPause) // n1 is asked
	steps := []chan struct{}{refusal, answered}
	if answerFirst {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		close(step)
		synctest.Wait()
		sched.mu.Lock()
		if mute := sched.mute["n1"]; mute != (step == refusal) {
			t.Errorf("n1 gave no connection: %v; it is kept from new orders: %v", step == refusal, mute)
		}
		sched.mu.Unlock()
		wait(2 * doubtPause)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, taken); diff != "" {
		t.Errorf("orders that the nodes took (-want +got):\n%s", diff)
	}
	cancel()
	if err := errors.Join(<-ended, st.check(), st.close()); err != nil {
		t.Error(err)
	}
}
