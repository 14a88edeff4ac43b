package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
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
		{``, "the body is empty"},
		{`{`, "the body is no job: unexpected EOF"},
		{`[]`, "a job must be a JSON object, not a JSON array"},
		{`"a"`, "a job must be a JSON object, not a JSON string"},
		{`{"name":1}`, "name: a JSON number does not fit here"},
		{`{"name":"a","retries":-1}`, "retries: a JSON number -1 does not fit here"},
		{`{"name":"a","retries":1.5}`, "retries: a JSON number 1.5 does not fit here"},
		{`{"name":"a","retries":"1"}`, "retries: a JSON string does not fit here"},
		{`{"name":"a","disabled":"yes"}`, "disabled: a JSON string does not fit here"},
		{`{"name":"a","tags":{"x":1}}`, `tags.x: a JSON number does not fit here; write it in quotes`},
		{`{"name":"a","tags":["x"]}`, "tags: a JSON array does not fit here"},
		{`{"name":"a","executor_config":{"command":["x"]}}`, "executor_config.command: a JSON array does not fit here"},
		{`{"name":"a","expires_at":"tomorrow"}`, `"tomorrow" is no time`},
		{`{"name":"a","expires_at":5}`, "a time must be a string"},
		{`{"name":"a","starts_at":"9999-12-31T23:59:59Z"}`, "starts_at: must lie in the years 1678 to 2261, or be null"},
		{`{"name":"a","starts_at":"1677-12-31T23:59:59Z"}`, "starts_at: must lie in the years 1678 to 2261, or be null"},
		{`{"name":"a","expires_at":"1500-01-01T00:00:00Z"}`, "expires_at: must lie in the years 1678 to 2261, or be null"},
		{`{"name":"a"}{}`, "the body must hold one JSON object and nothing after it"},
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
	http := func(config ...string) func(*job) {
		return func(j *job) {
			j.Executor, j.ExecutorConfig = executorHTTP, map[string]string{}
			for i := 0; i < len(config); i += 2 {
				j.ExecutorConfig[config[i]] = config[i+1]
			}
		}
	}
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
		{"OKDurations", func(j *job) { j.RetryDelay, j.RetryMaxDelay, j.Timeout = "10s", "10s", "1ms" }, ""},
		{"OKRetryMaxDelayAlone", func(j *job) { j.RetryMaxDelay = "168h" }, ""},
		{"ErrRetryDelayWord", func(j *job) { j.RetryDelay = "soon" }, "retry_delay"},
		{"ErrRetryDelayShort", func(j *job) { j.RetryDelay = "999ms" }, "retry_delay"},
		{"ErrRetryDelayLong", func(j *job) { j.RetryDelay = "169h" }, "retry_delay"},
		{"ErrRetryMaxDelayBelow", func(j *job) { j.RetryDelay, j.RetryMaxDelay = "10s", "9s" }, "retry_max_delay"},
		{"ErrRetryMaxDelayLong", func(j *job) { j.RetryMaxDelay = "169h" }, "retry_max_delay"},
		{"ErrTimeoutOfJob", func(j *job) { j.Timeout = "0s" }, "timeout"},
		{"ErrTimeoutOfJobLong", func(j *job) { j.Timeout = "8761h" }, "timeout"},
		{"OKCatchup", func(j *job) { j.Catchup = "10s" }, ""},
		{"ErrCatchupWord", func(j *job) { j.Catchup = "late" }, "catchup"},
		{"ErrCatchupShort", func(j *job) { j.Catchup = "9s" }, "catchup"},
		{"ErrCatchupLong", func(j *job) { j.Catchup = "169h" }, "catchup"},
		{"ErrParent", func(j *job) { j.ParentJob = "a" }, "parent_job"},
		{"ErrParentWithSchedule", func(j *job) { j.ParentJob, j.Schedule = "b", "never" }, "schedule"},
		{"ErrSchedule", func(j *job) { j.Schedule = "* * * * *" }, "schedule"},
		{"ErrScheduleEmpty", func(j *job) { j.Schedule = "" }, "schedule"},
		{"ErrTimezone", func(j *job) { j.Timezone = "Mars/Base" }, "timezone"},
		{"ErrTimezoneOfChild", func(j *job) { j.Timezone, j.ParentJob, j.Schedule = "Mars/Base", "b", "" }, "timezone"},
		{"OKTagCount", func(j *job) { j.Tags = map[string]string{"role": "web:1", "dc": "0", "rack": "-1", "addr": "a:b"} }, ""},
		{"ErrTagCountZero", func(j *job) { j.Tags = map[string]string{"dc": "dc1", "role": "web:0"} }, "tags.role"},
		{"ErrTagCountNegative", func(j *job) { j.Tags = map[string]string{"role": "web:-1"} }, "tags.role"},
		{"ErrTimeout", func(j *job) { j.Executor, j.ExecutorConfig = executorShell, map[string]string{"timeout": "soon"} }, "executor_config"},
		{"OKHTTPEmpty", http(), ""},
		{"OKHTTPTimeoutText", http("timeout", "abc"), ""}, // as upstream
		{"OKHTTPExpectations", http("timeout", "5", "expectCode", "200, 206,", "expectBody", "^ok$"), ""},
		{"ErrHTTPTimeoutDuration", http("timeout", "5s"), "executor_config.timeout"},
		{"ErrHTTPTimeoutNegative", http("timeout", "-5"), "executor_config.timeout"},
		{"ErrHTTPTimeoutZero", http("timeout", "0"), "executor_config.timeout"},
		{"ErrHTTPCode", http("expectCode", "200-299"), "executor_config.expectCode"},
		{"ErrHTTPCodeWords", http("expectCode", "200 206"), "executor_config.expectCode"},
		{"ErrHTTPBody", http("expectBody", "("), "executor_config.expectBody"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := ok
			c.edit(&j)
			err := j.validate("UTC", 0)
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
		{"AtNever", job{Schedule: "@at 9999-01-01T00:00:00Z"}, "", ""},
		{"After", job{Schedule: "@after 2026-03-01T13:00:00Z <PT2H"}, "", "2026-03-01T13:00:00Z"},
		{"AfterBegun", job{Schedule: "@after 2026-03-01T11:00:00Z <PT2H"}, "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"},
		{"AfterBegunAndFired", job{Schedule: "@after 2026-03-01T11:00:00Z <PT2H"}, "2026-03-01T11:00:00Z", ""},
		{"AfterPast", job{Schedule: "@after 2026-03-01T10:00:00Z <PT2H"}, "", ""},
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

// TestMoment_Pick: every tag must match, the lowest count limits, and no tags
// mean every node.
func TestMoment_Pick(t *testing.T) {
	nodes := []node{
		{"n1", 1, map[string]string{"role": "web", "dc": "a"}, false},
		{"n2", 2, map[string]string{"role": "web", "dc": "b"}, false},
		{"n3", 3, map[string]string{"role": "web", "dc": "b", "port": "x:80"}, false},
		{"n4", 4, map[string]string{"role": "db:1"}, false},
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
			got := moment{nodes: nodes, rnd: rand.New(rand.NewPCG(seed, 0)), picked: map[string]int{}}.pick(c.tags)
			for i, x := range got {
				if !slices.Contains(c.from, x.Node) || i > 0 && got[i-1].Node >= x.Node {
					t.Errorf("pick(%v) = %v, want some of %v in order", c.tags, got, c.from)
				}
			}
			if len(got) != c.want {
				t.Errorf("pick(%v) = %v, want %d nodes", c.tags, got, c.want)
			}
		}
	}
}

// TestMoment_PickRoom: a count takes the nodes with the most room, and full ones last.
func TestMoment_PickRoom(t *testing.T) {
	for seed := range uint64(20) {
		m := moment{rnd: rand.New(rand.NewPCG(seed, 0)), picked: map[string]int{}, running: map[string]int{"n1": 3, "n2": 1, "n3": 2, "n4": 9}}
		for name, limit := range map[string]string{"n1": "4", "n2": "4", "n3": "2"} {
			m.nodes = append(m.nodes, node{Name: name, Tags: map[string]string{"role": "web", tagMaxConcurrent: limit}})
		}
		got := map[string]int{}
		for range 4 {
			got[m.pick(map[string]string{"role": "web:1"})[0].Node]++
		}
		if diff := cmp.Diff(map[string]int{"n1": 1, "n2": 3}, got); diff != "" {
			t.Fatalf("seed %d: 4 runs went to (-want +got):\n%s", seed, diff)
		}
		m.nodes = append(m.nodes, node{Name: "n4", Tags: map[string]string{"role": "web"}})
		if to := m.pick(map[string]string{"role": "web:1"}); to[0].Node != "n4" {
			t.Fatalf("seed %d: the run went to %v, want the node without a limit", seed, to)
		}
		if limits := m.limits([]target{{Node: "n1"}, {Node: "n4"}}); !cmp.Equal(limits, map[string]int{"n1": 4}) {
			t.Fatalf("limits of n1 and n4 are %v", limits)
		}
	}
}

// TestMoment_PickOverdue: where a count leaves a choice, runs of one moment are
// spread evenly over the nodes, and those that are overdue get what the others
// do not make up. Where there is no choice they are no less chosen.
func TestMoment_PickOverdue(t *testing.T) {
	for _, c := range []struct {
		tag     string
		overdue string
		want    map[string]int // the most of 20 runs
	}{
		{"web:1", "", map[string]int{"n1": 7, "n2": 7, "n3": 7}},
		{"web:1", "n2", map[string]int{"n1": 10, "n3": 10}},
		{"web:2", "n1 n2", map[string]int{"n1": 10, "n2": 10, "n3": 20}},
		{"web:1", "n1 n2 n3", map[string]int{"n1": 7, "n2": 7, "n3": 7}},
		{"web", "n2", map[string]int{"n1": 20, "n2": 20, "n3": 20}},
	} {
		for seed := range uint64(20) {
			m := moment{rnd: rand.New(rand.NewPCG(seed, 0)), picked: map[string]int{}}
			for _, name := range []string{"n1", "n2", "n3"} {
				m.nodes = append(m.nodes, node{Name: name, Tags: map[string]string{"role": "web"}, Overdue: strings.Contains(c.overdue, name)})
			}
			got := map[string]int{}
			for range 20 {
				for _, x := range m.pick(map[string]string{"role": c.tag}) {
					got[x.Node]++
				}
			}
			for name, n := range got {
				if n > c.want[name] {
					t.Errorf("%s with %q overdue, seed %d: 20 runs went to %v, want at most %v", c.tag, c.overdue, seed, got, c.want)
				}
			}
		}
	}
}

// TestScheduler_OverdueAnswer: a node that has not answered its orders for half
// a second is overdue until it does.
func TestScheduler_OverdueAnswer(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	var tasks []func()
	s.spawn = func(task func()) { tasks = append(tasks, task) }
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "a"); err != nil {
		t.Fatal(err)
	}
	tasks[0]() // makes the orders
	overdue := func(want bool) {
		t.Helper()
		if got := s.moment().nodes[0].Overdue; got != want {
			t.Errorf("overdue after %s: %t, want %t", time.Duration(now-testStart), got, want)
		}
	}
	overdue(false)
	now += int64(answerOverdue) + 1
	overdue(true)
	tasks[1]() // carries them
	overdue(false)
}

// TestScheduler_StoodStill: a leader that stands still between a decision and
// its acceptance does not run it when it wakes after the catch-up window: the tick
// is missed.
func TestScheduler_StoodStill(t *testing.T) {
	for gap, want := range map[time.Duration]string{2 * time.Minute: outcomeMissed, 10 * time.Second: ""} {
		now := testStart
		s, sent := newTestScheduler(t, &now)
		a := job{Name: "a", Schedule: "@every 2m", Executor: "shell", ExecutorConfig: map[string]string{"command": "true"}}
		commit(t, s.store, &command{Now: now, Put: []jobPut{{Job: a, Next: now}}})
		propose := s.fake().onPropose
		s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
			if len(c.Consume) > 0 {
				now += int64(gap)
			}
			return propose(ctx, c)
		}
		if _, err := s.fireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.askNodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		rows, err := s.store.recentExecutions(executionFilter{to: math.MaxInt64, limit: 10})
		if err != nil || len(rows) != 1 || rows[0].Outcome != want || len(*sent) == 0 != (want != "") {
			t.Errorf("after %s: %+v, %v, orders %+v; want outcome %q", gap, rows, err, *sent, want)
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
	every10 := jobRow{job: job{Schedule: "@every 10s"}, next: at(0)}
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
		{name: "RareToHalfOfItsPeriod", row: jobRow{job: job{Schedule: "@every 1h"}, next: at(0)}, now: 1800, since: 1800, want: []string{"0 late n1 n2, then 3600"}},
		{name: "MissedAllOfRare", row: jobRow{job: job{Schedule: "@every 1h"}, next: at(0)}, now: 1801, since: 1801, want: []string{"0..0x1 missed (no leader until 2026-03-01T12:30:01Z), then 3600"}},
		{name: "MissedByLeaderItself", row: jobRow{job: job{Schedule: "@every 1h"}, next: at(0)}, now: 1801, since: -100, want: []string{"0..0x1 missed (the leader was more than 30m0s behind), then 3600"}},
		{name: "DailyToAnHour", row: jobRow{job: job{Schedule: "@daily"}, next: at(12 * 3600)}, now: 13 * 3600, since: 13 * 3600, want: []string{"43200 late n1 n2, then 129600"}},
		{name: "MissedDaily", row: jobRow{job: job{Schedule: "@daily"}, next: at(12 * 3600)}, now: 13*3600 + 1, since: 13*3600 + 1, want: []string{"43200..43200x1 missed (no leader until 2026-03-02T01:00:01Z), then 129600"}},
		{name: "MissedAllButTheLast", row: jobRow{job: job{Schedule: "@every 10m"}, next: at(0)}, now: 1440, since: 1440, want: []string{"0..600x2 missed (no leader until 2026-03-01T12:24:00Z), then 1200", "1200 late n1 n2, then 1800"}},
		{name: "MissedTheLastToo", row: jobRow{job: job{Schedule: "@every 10m"}, next: at(0)}, now: 1501, since: 1501, want: []string{"0..1200x3 missed (no leader until 2026-03-01T12:25:01Z), then 1800"}},
		{name: "UnevenPeriods", row: jobRow{job: job{Schedule: "0 0,2 13 * * *"}, next: at(3600)}, now: 3600 + 500, since: 3600 + 500, want: []string{"3600..3600x1 missed (no leader until 2026-03-01T13:08:20Z), then 3720", "3720 late n1 n2, then 90000"}},
		{name: "CatchupOfItsOwn", row: jobRow{job: job{Schedule: "@daily", Catchup: "24h"}, next: at(12 * 3600)}, now: 36*3600 - 1, since: 36*3600 - 1, want: []string{"43200 late n1 n2, then 129600"}},
		{name: "CatchupOfItsOwnShort", row: jobRow{job: job{Schedule: "@daily", Catchup: "10s"}, next: at(12 * 3600)}, now: 12*3600 + 11, since: 0, want: []string{"43200..43200x1 missed (the leader was more than 10s behind), then 129600"}},
		{name: "AfterWithinItsWindow", row: jobRow{job: job{Schedule: "@after 2026-03-01T12:00:00Z <PT2H"}, next: at(0)}, now: 7200, since: 7200, want: []string{"0 late n1 n2, then never"}},
		{name: "AfterTooLate", row: jobRow{job: job{Schedule: "@after 2026-03-01T12:00:00Z <PT2H"}, next: at(0)}, now: 7201, since: 7201, want: []string{"0..0x1 missed (no leader until 2026-03-01T14:00:01Z), then never"}},
		{name: "MissedManyByArithmetic", row: jobRow{job: job{Schedule: "@every 1s"}, next: at(-30 * 86400)}, now: 60, since: 60,
			want: []string{"-2592000..-1x2592000 missed (no leader until 2026-03-01T12:01:00Z), then 0", "0..50x51 missed (no leader until 2026-03-01T12:01:00Z, and only the newest 10 run), then 51",
				"51 late n1 n2, then 52", "52 late n1 n2, then 53", "53 late n1 n2, then 54", "54 late n1 n2, then 55", "55 late n1 n2, then 56", "56 late n1 n2, then 57", "57 late n1 n2, then 58", "58 late n1 n2, then 59", "59 late n1 n2, then 60", "60 n1 n2, then 61"}},
		{name: "ForbidRunsNewest", row: jobRow{job: job{Schedule: "@every 10s", Concurrency: concurrencyForbid}, next: at(0)}, now: 25, since: 25,
			want: []string{"0..10x2 missed (no leader until 2026-03-01T12:00:25Z, and only the newest 1 run), then 20", "20 late n1 n2, then 30"}},
		{name: "ForbidBusyLeader", row: jobRow{job: job{Schedule: "@every 10s", Concurrency: concurrencyForbid}, next: at(0)}, now: 25, since: -100,
			want: []string{"0..10x2 skipped (later ticks were due at the same time, and only the newest 1 run), then 20", "20 n1 n2, then 30"}},
		{name: "Overlap", row: every10, since: -100, overlap: "overlap with 7-n1", want: []string{"0 skipped (overlap with 7-n1), then 10"}},
		{name: "AtRunsHoweverLate", row: jobRow{job: job{Schedule: "@at 2026-03-01T12:00:00Z"}, next: at(0)}, now: 86400, since: 86400, want: []string{"0 late n1 n2, then never"}},
		{name: "LastOfWindow", row: jobRow{job: job{Schedule: "@every 10s", ExpiresAt: instant(at(15))}, next: at(0)}, now: 30, since: -100, want: []string{"0 n1 n2, then 10", "10 n1 n2, then never"}},
		{name: "MissedToEndOfWindow", row: jobRow{job: job{Schedule: "@every 10s", ExpiresAt: instant(at(15))}, next: at(0)}, now: 300, since: 300,
			want: []string{"0..10x2 missed (no leader until 2026-03-01T12:05:00Z), then never"}},
		{name: "NoNodeYet", row: every10, now: 4, since: 0, tags: `{"role":"none"}`, want: nil},
		{name: "NoNodeAfterFailure", row: every10, now: 6, since: 0, tags: `{"role":"none"}`, want: []string{"0 skipped (no node has the tags that the job asks for), then 10"}},
		{name: "NoNodeAndClockBack", row: every10, now: 6, since: 1000, tags: `{"role":"none"}`, want: nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := c.row
			r.Name = "a"
			if err := json.Unmarshal([]byte(orNull(c.tags)), &r.Tags); err != nil {
				t.Fatal(err)
			}
			m := moment{now: at(c.now), lostAfter: time.Minute, since: at(c.since), catchup: time.Minute, zone: "UTC", nodes: []node{{Name: "n1"}, {Name: "n2"}}, rnd: rand.New(rand.NewPCG(1, 1)), picked: map[string]int{}}
			if diff := cmp.Diff(c.want, planned(base, m.plan(&r, c.overlap))); diff != "" {
				t.Errorf("plan of %s at %d (-want +got):\n%s", r.Schedule, c.now, diff)
			}
		})
	}
}

// TestMoment_PlanPending: a retry goes to its node, a child to where its tags
// say; who is not there is waited for, and a disabled job runs nothing.
func TestMoment_PlanPending(t *testing.T) {
	nodes := []node{{Name: "n1", Incarnation: 5}, {Name: "n2", Incarnation: 6, Tags: map[string]string{"role": "web"}}}
	ahead := testStart + int64(4*time.Hour) // by the clock of an earlier leader
	for _, c := range []struct {
		name  string
		p     pendingRow
		row   jobRow
		tags  string
		awake int64 // seconds
		want  decision
	}{
		{"Retry", pendingRow{Cause: causeRetry, Node: "n2"}, jobRow{}, "null", 0, decision{Targets: []target{{"n2", 6}}}},
		{"RetryNodeGone", pendingRow{Cause: causeRetry, Node: "n3"}, jobRow{}, "null", 100, decision{}},
		{"RetryDisabled", pendingRow{Cause: causeRetry, Node: "n2"}, jobRow{job: job{Disabled: true}}, "null", 0, decision{Outcome: outcomeSkipped, Reason: "the job is disabled"}},
		{"RetryEarly", pendingRow{Cause: causeRetry, Node: "n2", Attempt: 3, Due: testStart + 2e9}, jobRow{}, "null", 0, decision{}},
		{"RetryEarlyByHours", pendingRow{Cause: causeRetry, Node: "n2", Attempt: 2, Due: ahead}, jobRow{job: job{RetryDelay: "4h"}}, "null", 0, decision{}},
		{"Child", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"web"}`, 0, decision{Targets: []target{{"n2", 6}}}},
		{"ChildNoNodeYet", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"db"}`, 4, decision{}},
		{"ChildNoNodeStill", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"db"}`, 299, decision{}},
		{"ChildNoNode", pendingRow{Cause: causeChild}, jobRow{}, `{"role":"db"}`, 301, decision{Outcome: outcomeMissed, Reason: "waited 5m0s, and " + noNodeReason, Event: eventMissed}},
		{"ChildAhead", pendingRow{Cause: causeChild, Due: ahead}, jobRow{}, `{"role":"db"}`, 301, decision{Outcome: outcomeMissed, Reason: "waited 5m0s, and " + noNodeReason, Event: eventMissed}},
		{"RetryAhead", pendingRow{Cause: causeRetry, Node: "n1", Due: ahead}, jobRow{}, "null", 0, decision{Targets: []target{{"n1", 5}}}},
		{"RetryAheadNodeGone", pendingRow{Cause: causeRetry, Node: "n3", Due: ahead}, jobRow{}, `{"role":"db"}`, 301, decision{Outcome: outcomeMissed, Reason: "the retry waited 5m0s for node n3"}},
		{"RetryAheadNodeGoneStill", pendingRow{Cause: causeRetry, Node: "n3", Due: ahead}, jobRow{}, `{"role":"db"}`, 299, decision{}},
		{"WaitsForMutex", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@every 1h"}}, `{"role":"web"}`, 1800,
			decision{Targets: []target{{"n2", 6}}}},
		{"WaitsForMutexNoMore", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@every 1h"}}, `{"role":"web"}`, 1801,
			decision{Targets: []target{{"n2", 6}}, Last: true}},
		{"WaitsAsItsCatchupSays", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "node n2"}, jobRow{job: job{Schedule: "@every 1h", Catchup: "10s"}},
			`{"role":"web"}`, 11, decision{Targets: []target{{"n2", 6}}, Last: true}},
		{"AtWaitsOn", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@at 2026-01-02T00:00:00Z"}}, `{"role":"web"}`, 86400,
			decision{Targets: []target{{"n2", 6}}}},
		{"OwnRunIsWaitedFor", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "job 4"}, jobRow{job: job{Schedule: "@every 1h"}}, `{"role":"web"}`, 86400,
			decision{Targets: []target{{"n2", 6}}}},
		{"HandWaitsForAnHour", pendingRow{Cause: causeHand, Asked: testStart, WaitsFor: "node n2"}, jobRow{job: job{Schedule: "@manually"}}, `{"role":"web"}`, 3600,
			decision{Targets: []target{{"n2", 6}}}},
		{"SlotFromItsOwnStart", pendingRow{Cause: causeSlot, Group: 2, Node: "n2", Asked: testStart - 9e12, Due: testStart, WaitsFor: "node n2"}, jobRow{job: job{Schedule: "@every 1h"}},
			"null", 1800, decision{Targets: []target{{"n2", 6}}}},
		{"WaitsWhileDisabled", pendingRow{Cause: causeTick, Asked: testStart, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@every 1h", Disabled: true}}, "null", 5,
			decision{Outcome: outcomeSkipped, Reason: "the job is disabled"}},
		{"ForcedWhileDisabled", pendingRow{Cause: causeHand, Forced: true, Asked: testStart, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@every 1h", Disabled: true}}, `{"role":"web"}`, 5,
			decision{Targets: []target{{"n2", 6}}, Force: true}},
		{"WaitsSinceTheRelease", pendingRow{Cause: causeTick, Asked: testStart - 9e12, WaitsFor: "mutex m"}, jobRow{job: job{Schedule: "@every 1h"}}, `{"role":"web"}`, 1700,
			decision{Targets: []target{{"n2", 6}}}},
		{"ChildExpired", pendingRow{Cause: causeChild}, jobRow{job: job{ExpiresAt: instant(testStart - 1)}}, "null", 0,
			decision{Outcome: outcomeSkipped, Reason: "the job's expires_at has passed"}},
		{"ChildDisabled", pendingRow{Cause: causeChild}, jobRow{job: job{Disabled: true}}, "null", 0, decision{Outcome: outcomeSkipped, Reason: "the job is disabled"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.p.ID, c.p.JobID, c.row.version = 3, 4, jobVersion{4, 9}
			if c.p.Cause == causeRetry {
				c.p.Group = 2
			}
			if err := json.Unmarshal([]byte(c.tags), &c.row.Tags); err != nil {
				t.Fatal(err)
			}
			c.want.Pending, c.want.Job, c.want.Rev = 3, 4, 9
			m := moment{now: testStart + c.awake*int64(time.Second), since: testStart, lostAfter: 5 * time.Minute, zone: "UTC", nodes: nodes,
				released: map[bool]int64{true: testStart}[c.name == "WaitsSinceTheRelease"], rnd: rand.New(rand.NewPCG(1, 1)), picked: map[string]int{}}
			got, ok := m.planPending(c.p, &c.row, nil)
			if diff := cmp.Diff(c.want, got); diff != "" || ok != (len(got.Targets) > 0 || got.Outcome != "") {
				t.Errorf("planPending(%+v) (-want +got):\n%s", c.p, diff)
			}
		})
	}
}

// definition is the job without its record.
func (r *jobRow) definition() job {
	j := r.job
	j.dropRecord()
	return j
}

// succeeded is the result of an execution that went well, as its node says it.
func succeeded(t *testing.T, s *scheduler, id, now int64) []result {
	t.Helper()
	e, err := s.store.execution(id)
	if err != nil {
		t.Fatal(err)
	}
	return []result{{Execution: id, Node: e.Node, Incarnation: e.incarnation, Started: now, Finished: now + 1, Outcome: outcomeSuccess}}
}

// A server that starts nothing any more has nothing to look at either, until what runs has ended: that may take
// hours, in which what it had put off falls due.
func TestScheduler_StoppedRests(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@at " + timeOf(now).Add(time.Second).Format(time.RFC3339)})
	if err := s.setRule(t.Context(), request{ID: "h"}, actionHold, ruleHold, "", &rule{Why: "a migration"}); err != nil {
		t.Fatal(err)
	}
	now += int64(2 * time.Second)
	if _, err := s.fireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.stopFiring()
	for range 3 {
		now += int64(tickSlack)
		if wait, err := s.fireDue(t.Context()); err != nil || wait <= 0 {
			t.Errorf("the next look is due after %s, %v", wait, err)
		}
	}
}

// A server that just became the leader takes writes before its work begins. One whose job has a tick due decides that,
// but must not find that no node is there: the leader has seen none yet.
func TestScheduler_WriteBeforeTerm(t *testing.T) {
	now := testStart
	old, _ := newTestScheduler(t, &now)
	putJobs(t, old, job{Name: "a", Schedule: "@every 1m"})
	now += int64(2 * time.Minute)
	old.fake().onNodes = func() []node { return nil }
	s := newScheduler(old.cfg, old.store, old.log)
	s.cluster, s.now = old.cluster, old.now
	s.wait = func(context.Context, time.Duration) error { return errUnknown }
	if _, _, err := s.put(t.Context(), request{ID: "r"}, job{Name: "a", Schedule: "@every 1h"}); err != errUnknown {
		t.Errorf("got %v", err)
	}
	if row, err := s.store.job("a"); err != nil || row.next > now {
		t.Errorf("the tick was decided: the next is at %s, %v", timeOf(row.next), err)
	}
}

// Orders are refused while the job of one is deleted: that holds up none of the
// others.
func TestScheduler_RefusedBesideDeleted(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "p", Schedule: "@manually"}, job{Name: "x", ParentJob: "p"}, job{Name: "y", ParentJob: "p"})
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.report(t.Context(), succeeded(t, s, res.Started[0][0], now)); err != nil {
		t.Fatal(err)
	}
	now += int64(10 * time.Second)
	s.fake().onStart = func(string, dispatch) error {
		if _, _, err := s.delete(t.Context(), request{ID: "d"}, "x"); err != nil {
			t.Fatal(err)
		}
		return fmt.Errorf("%w: %w", errRefused, errNoConnection)
	}
	for range 2 { // the first makes rows of the children
		if _, err := s.fireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.store.unfinishedExecutions(); err != nil || len(rows) != 0 {
		t.Errorf("unfinished are %+v, %v: no node took them and no other is there", rows, err)
	}
}

// Orders are refused when the job of one was deleted and another was made of its
// name: where the run goes is not for that to say.
func TestScheduler_RefusedBesideNamesake(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	s.fake().onNodes = func() []node {
		return []node{{Name: "n1", Incarnation: 7, Tags: map[string]string{"role": "a"}}, {Name: "n2", Incarnation: 8, Tags: map[string]string{"role": "b"}}}
	}
	putJobs(t, s, job{Name: "x", Schedule: "@manually", Tags: map[string]string{"role": "a:1"}})
	var orders []string
	s.fake().onStart = func(node string, _ dispatch) error {
		if orders = append(orders, node); len(orders) > 1 {
			return nil
		}
		if _, _, err := s.delete(t.Context(), request{ID: "d"}, "x"); err != nil {
			t.Fatal(err)
		}
		putJobs(t, s, job{Name: "x", Schedule: "@manually", Tags: map[string]string{"role": "b:1"}})
		return fmt.Errorf("%w: %w", errRefused, errNoConnection)
	}
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"n1"}, orders); diff != "" {
		t.Errorf("orders went to (-want +got):\n%s", diff)
	}
}

// An execution whose first order is on its way is not asked about: the order may come
// behind the question, and run although the answer does not know it.
func TestScheduler_OrderBehindQuestion(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 10s"})
	if err := s.askNodes(t.Context()); err != nil { // of which it knows from now on that it was there
		t.Fatal(err)
	}
	var late []func()
	s.spawn = func(task func()) { late = append(late, task) }
	now += int64(10 * time.Second)
	if _, err := s.fireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	now += int64(s.cfg.Catchup) + 1
	s.fake().onNodes = func() []node { return nil } // it counts as failed, so what it has is in doubt
	s.spawn = func(task func()) { task() }
	s.fake().onAsk = func(string, question) (answer, error) {
		for _, task := range late {
			now -= int64(s.cfg.Catchup) // the order was read before
			task()
			now += int64(s.cfg.Catchup)
		}
		late = nil
		return answer{Incarnation: 7}, nil
	}
	for range 2 {
		if err := s.askNodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, task := range late {
			now -= int64(s.cfg.Catchup)
			task()
			now += int64(s.cfg.Catchup)
		}
		late = nil
		s.fake().onAsk = func(string, question) (answer, error) {
			return answer{Incarnation: 7, Running: []int64{(*sent)[0].Orders[0].Execution}}, nil
		}
	}
	if rows, err := s.store.unfinishedExecutions(); err != nil || len(rows) != 1 || len(*sent) != 1 {
		t.Errorf("after %d orders, which the node has taken, %d executions are unfinished, %v", len(*sent), len(rows), err)
	}
}

// TestScheduler_QuestionBeforeOrder: a node is not asked about an execution that is in the store, while the leader has
// yet to order it.
func TestScheduler_QuestionBeforeOrder(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	row := putJobs(t, s, job{Name: "a", Schedule: "@every 10s"})
	if err := s.askNodes(t.Context()); err != nil { // records the node
		t.Fatal(err)
	}
	now = row.next
	run := decision{Job: row.version.ID, Rev: row.version.Rev, Due: now, Next: never, Targets: []target{{"n1", 7}}}
	res := commit(t, s.store, &command{Now: now, Consume: []decision{run}})
	asked := 0
	s.fake().onAsk = func(_ string, q question) (answer, error) {
		asked += len(q.Executions)
		return answer{Incarnation: 7}, nil
	}
	now += int64(s.cfg.Catchup)
	if err := errors.Join(s.doubtOld(timeOf(now+int64(reviewPause))), s.askNodes(t.Context())); err != nil || asked != 0 {
		t.Errorf("it asks about %d executions, %v, want none", asked, err)
	}
	s.noteApplied(res...)
	if len(*sent) != 1 || len(res[0].Started) != 1 {
		t.Errorf("orders are %+v, want one for %v", *sent, res[0].Started)
	}
}

// What one process has refused goes to another; when that does not answer, it is asked.
func TestScheduler_RefusedThenUnanswered(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	s.fake().onNodes = func() []node {
		return []node{{Name: "n1", Incarnation: 7, Tags: map[string]string{"role": "a"}}, {Name: "n2", Incarnation: 7, Tags: map[string]string{"role": "a"}}}
	}
	putJobs(t, s, job{Name: "x", Schedule: "@manually", Tags: map[string]string{"role": "a:1"}})
	var orders []string
	s.fake().onStart = func(node string, _ dispatch) error {
		if orders = append(orders, node); len(orders) > 1 {
			return context.DeadlineExceeded
		}
		return fmt.Errorf("%w: %w", errRefused, errNoConnection)
	}
	asked := map[string]int{}
	s.fake().onAsk = func(node string, q question) (answer, error) {
		asked[node] += len(q.Executions)
		return answer{Incarnation: 7}, nil
	}
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "x"); err != nil {
		t.Fatal(err)
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(orders) < 2 || asked[orders[1]] != 1 {
		t.Errorf("orders went to %v, asked about them were %v; want the second", orders, asked)
	}
}

// Nodes of which more is to be recorded than one command holds are recorded in parts,
// and what cannot be recorded keeps nobody from asking.
func TestScheduler_ManyTags(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	var nodes []node
	for i := range 300 {
		nodes = append(nodes, node{Name: fmt.Sprintf("n%03d", i), Incarnation: 7, Tags: map[string]string{"tag": strings.Repeat("x", 5_000)}})
	}
	s.fake().onNodes = func() []node { return nodes }
	propose := s.fake().onPropose
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
		if data, err := c.encode(); err != nil || len(data) > commandBytesMax || len(c.Nodes) == 1 {
			return applied{}, orElse(err, errTooLarge)
		}
		return propose(ctx, c)
	}
	asked := 0
	s.fake().onAsk = func(string, question) (answer, error) { asked++; return answer{Incarnation: 7}, nil }
	if err := s.askNodes(t.Context()); err != nil {
		t.Error(err)
	}
	if recorded, err := s.store.nodesSeen(); err != nil || len(recorded) != len(nodes) {
		t.Errorf("%d nodes are recorded, %v, want %d", len(recorded), err, len(nodes))
	}
	nodes = append(nodes, node{Name: "x", Incarnation: 8, Tags: map[string]string{"tag": "x"}})
	if err := s.askNodes(t.Context()); err != nil || asked != len(nodes) {
		t.Errorf("%d nodes were asked, %v, want %d", asked, err, len(nodes))
	}
}

// TestScheduler_Rests: who has looked waits for the next tick, and is woken only by what is due before it: a job that
// is put meanwhile, also while he looks.
func TestScheduler_Rests(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	woken := func() (n int) {
		for ; len(s.wake) > 0; n++ {
			<-s.wake
		}
		return n
	}
	putJobs(t, s, job{Name: "a", Schedule: "@at " + timeOf(now+int64(tickSlack/2)).Format(time.RFC3339Nano)})
	woken()
	if wait, err := s.fireDue(t.Context()); err != nil || wait != tickSlack/2 || woken() > 0 {
		t.Errorf("it waits for %s, %v, want %s undisturbed", wait, err, tickSlack/2)
	}
	putJobs(t, s, job{Name: "b", Schedule: "@every 1m"})
	if woken() > 0 {
		t.Error("it is woken for a job that is due later")
	}
	putJobs(t, s, job{Name: "c", Schedule: "@at " + timeOf(now+int64(tickSlack/4)).Format(time.RFC3339Nano)})
	if woken() != 1 {
		t.Error("it is not woken for a job that is due earlier")
	}
	if _, _, err := s.due(now); err != nil {
		t.Fatal(err)
	}
	putJobs(t, s, job{Name: "d", Schedule: "@every 1h"})
	if woken() != 1 {
		t.Error("a job that is put while it looks does not have it look again")
	}
}

// A node that did not answer for its last orders may answer the next question:
// what is due there waits for that.
func TestScheduler_MuteNode(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 10s"})
	now += int64(10 * time.Second)
	s.unresponsive["n1"] = true
	if _, err := s.fireDue(t.Context()); err != nil || len(*sent) != 0 {
		t.Fatalf("to a node that does not respond were sent %+v, %v", *sent, err)
	}
	if err := s.askNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	now += int64(time.Second)
	if _, err := s.fireDue(t.Context()); err != nil || len(*sent) != 1 {
		t.Errorf("once it has answered %d orders are sent, %v; want the one of ten seconds", len(*sent), err)
	}
}

// A change of a job does not wait until the loop that fires has caught up: a
// leader that is always late could never be told to stop.
func TestScheduler_ChangeWhileLate(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 1s"})
	now += int64(3 * time.Second)
	row, _, err := s.toggle(t.Context(), request{ID: "t"}, "a", nil)
	if err != nil || !row.Disabled || row.open != 3 || len(*sent) != 1 {
		t.Errorf("%d runs were started, in %d orders, before the job is %+v, %v; want the three that are due, and the job disabled", row.open, len(*sent), row, err)
	}
}

// TestScheduler_Families: a job has so many children and no more, and stands so
// deep and no deeper, however the jobs are made; what a group's end leaves behind is
// one row, whatever follows from it.
func TestScheduler_Families(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	list := func(jobs ...job) iter.Seq2[job, error] {
		return func(yield func(job, error) bool) {
			for _, j := range jobs {
				if !yield(j, nil) {
					return
				}
			}
		}
	}
	family := func(from, to int) (jobs []job) {
		for i := from; i < to; i++ {
			jobs = append(jobs, job{Name: fmt.Sprint("c", i), ParentJob: "p"})
		}
		return jobs
	}
	putJobs(t, s, job{Name: "p", Schedule: "@manually"})
	for i, c := range []struct {
		jobs []job
		want error
	}{
		{family(0, childrenMax/2), nil},
		{family(childrenMax/2, childrenMax), nil},
		{family(0, childrenMax), nil}, // they are there
		{family(childrenMax, childrenMax+1), errChildren},
	} {
		if _, err := s.restore(t.Context(), request{ID: fmt.Sprint("family ", i)}, list(c.jobs...), restoreOption{}); !errors.Is(err, c.want) {
			t.Errorf("restore %d: %v, want %v", i, err, c.want)
		}
	}
	if _, _, err := s.put(t.Context(), request{ID: "c"}, job{Name: "more", ParentJob: "p"}); !errors.Is(err, errChildren) {
		t.Errorf("a child too many: %v, want %v", err, errChildren)
	}
	if _, _, err := s.put(t.Context(), request{ID: "d"}, job{Name: "c1", ParentJob: "p", Owner: "o"}); err != nil {
		t.Errorf("a change of a child that there is: %v", err)
	}

	chain := []job{{Name: "a0", Schedule: "@manually"}}
	for i := range ancestorsMax {
		chain = append(chain, job{Name: fmt.Sprint("a", i+1), ParentJob: fmt.Sprint("a", i)})
	}
	if _, err := s.restore(t.Context(), request{ID: "chain"}, list(chain...), restoreOption{}); err != nil {
		t.Fatal(err)
	}
	last := job{Name: "last", ParentJob: chain[ancestorsMax].Name}
	if _, err := s.restore(t.Context(), request{ID: "deep"}, list(last), restoreOption{}); !errors.Is(err, errAncestors) {
		t.Errorf("a restore that goes a job too deep: %v, want %v", err, errAncestors)
	}
	if _, _, err := s.put(t.Context(), request{ID: "e"}, last); !errors.Is(err, errAncestors) {
		t.Errorf("a job too deep: %v, want %v", err, errAncestors)
	}
	if _, _, err := s.put(t.Context(), request{ID: "f"}, job{Name: "a0", ParentJob: "p"}); !errors.Is(err, errAncestors) && !errors.Is(err, errChildren) {
		t.Errorf("a job with too many below it: %v, want %v", err, errAncestors)
	}

	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.report(t.Context(), succeeded(t, s, res.Started[0][0], now)); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.store.pending(); err != nil || len(rows) != 1 {
		t.Errorf("%d rows are pending, %v, want one for all children", len(rows), err)
	}
	for range 2 {
		if _, err := s.fireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, d := range *sent {
		n += len(d.Orders)
	}
	if n != 1+childrenMax {
		t.Errorf("%d orders were sent, want one of the parent and %d of its children", n, childrenMax)
	}
}

// Nor does it wait for the only node of a job, which does not answer.
func TestScheduler_ChangeWhileMute(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 10s"})
	now += int64(10 * time.Second)
	s.unresponsive["n1"] = true
	if row, _, err := s.toggle(t.Context(), request{ID: "t"}, "a", nil); err != nil || !row.Disabled || len(*sent) != 0 {
		t.Errorf("the job is %+v, %v, after %d orders; want it disabled and none", row, err, len(*sent))
	}
}

// TestScheduler_Replace: what runs of a job that replaces it is ended at once, and the new run starts when that is recorded.
func TestScheduler_Replace(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	var ended []int64
	s.fake().onEnd = func(_ string, k kill) error { ended = append(ended, k.Execution); return nil }
	putJobs(t, s, job{Name: "a", Schedule: "@manually", Concurrency: concurrencyReplace, Retries: 3})
	_, first, err := s.runNow(t.Context(), request{ID: "first"}, "a")
	if err != nil || len(first.Started[0]) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err := s.fireDue(t.Context()); err != nil { // its look at all that waits
		t.Fatal(err)
	}
	_, second, err := s.runNow(t.Context(), request{ID: "second"}, "a")
	if err != nil || second.Refused != "" || len(second.Started[0]) != 0 {
		t.Fatalf("the second run: %+v, %v, want it to wait", second, err)
	}
	for range 2 {
		if _, err := s.fireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !cmp.Equal(ended, first.Started[0]) {
		t.Fatalf("ended were %v, want %v, once", ended, first.Started[0])
	}
	result := succeeded(t, s, ended[0], now)
	result[0].Outcome = outcomeKilled
	*sent = nil
	if _, err := s.report(t.Context(), result); err != nil {
		t.Fatal(err)
	}
	if _, err := s.fireDue(t.Context()); err != nil || len(*sent) != 1 || (*sent)[0].Orders[0].Attempt != 1 {
		t.Errorf("sent %+v, %v, want the second run", *sent, err)
	}
}

// A run that went to another process while it was killed is killed there.
func TestScheduler_KillMoved(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@manually"})
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "a")
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.store.execution(res.Started[0][0])
	if err != nil {
		t.Fatal(err)
	}
	if r := commit(t, s.store, &command{Now: now, Bind: []binding{{e.ID, 7, target{"n2", 9}}}}); !r[0].Accepted[0] {
		t.Fatal("the run was not moved")
	}
	s.fake().onEnd = func(string, kill) error { return errors.New("no answer") }
	if err := s.kill(t.Context(), request{ID: "k"}, e); err != nil {
		t.Fatal(err)
	}
	if e, err = s.store.execution(e.ID); err != nil || e.Outcome != outcomeKilled {
		t.Errorf("the outcome is %q, %v, want killed", e.Outcome, err)
	}
}

// TestScheduler_CatchUpWaits: a leader that has just begun does not take the nodes
// that came first for all that there are: it knows who was there before, and waits
// for them as long as a node takes to count as failed.
func TestScheduler_CatchUpWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		tags map[string]string
		back int // nodes that come back after two seconds
		want []int
	}{
		{"Every", nil, 3, []int{0, 3, 3}},
		{"EveryThatComes", nil, 2, []int{0, 0, 2}},
		{"Count", map[string]string{"role": "x:2"}, 3, []int{0, 2, 2}},
		{"CountThatIsThere", map[string]string{"role": "x:1"}, 3, []int{1, 1, 1}},
		{"Foreign", map[string]string{"own": "1"}, 1, []int{1, 1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := testStart
			s, sent := newTestScheduler(t, &now)
			nodes := []node{}
			for i := range 3 {
				nodes = append(nodes, node{Name: fmt.Sprint("n", i+1), Incarnation: 7, Tags: map[string]string{"role": "x", "own": fmt.Sprint(i + 1)}})
			}
			there := nodes
			s.fake().onNodes = func() []node { return there }
			if err := s.askNodes(t.Context()); err != nil {
				t.Fatal(err)
			}
			putJobs(t, s, job{Name: "a", Schedule: "@at " + timeOf(now+int64(10*time.Second)).Format(time.RFC3339), Tags: c.tags})
			s.endTerm()
			there = nodes[:1]
			now += int64(30 * time.Second)
			if err := s.beginTerm(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			for i, step := range []time.Duration{0, 2 * time.Second, nodeFailed} {
				if now += int64(step); i > 0 {
					there = nodes[:c.back]
				}
				if _, err := s.fireDue(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.askNodes(t.Context()); err != nil {
					t.Fatal(err)
				}
				n := 0
				for _, d := range *sent {
					n += len(d.Orders)
				}
				if n != c.want[i] {
					t.Errorf("at step %d the late tick has %d runs, want %d", i, n, c.want[i])
				}
			}
			if seen, err := s.store.nodesSeen(); err != nil || len(seen) != c.back {
				t.Errorf("on record are %v, %v, want %d nodes", seen, err, c.back)
			}
		})
	}
}

// TestScheduler_ToggleAtStart: a job whose tick waits for nodes, just after a start,
// can be toggled: that waits as well.
func TestScheduler_ToggleAtStart(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 10s"})
	s.endTerm()
	now += int64(10 * time.Second)
	s.fake().onNodes = func() []node { return nil }
	if err := s.beginTerm(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	s.wait = func(_ context.Context, d time.Duration) error { now += int64(d); return nil }
	row, _, err := s.toggle(t.Context(), request{ID: "t"}, "a", nil)
	if err != nil || !row.Disabled {
		t.Fatalf("the job is %+v, %v, want it disabled", row, err)
	}
	if list, _, err := s.store.ticks(row.version.ID, 0, math.MaxInt64, 0, 9); err != nil || len(list) != 1 || list[0].Reason != noNodeReason {
		t.Errorf("of its tick became %+v, %v, want a skip for want of a node", list, err)
	}
}

// TestMoment_Resolve: what a node's answer means for an execution in doubt.
func TestMoment_Resolve(t *testing.T) {
	rare := &jobRow{job: job{Name: "a", Schedule: "@every 5m"}}
	every, once := &jobRow{job: job{Name: "a", Schedule: "@every 1m"}}, &jobRow{job: job{Name: "a", Schedule: "@at 2026-01-01T00:00:00Z"}}
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
		{"NeverStartedRare", answer{Incarnation: 7}, causeTick, old, rare, "", true},
		{"NeverStartedOnce", answer{Incarnation: 7}, causeTick, old, once, "", true},
		{"NeverStartedForLong", answer{Incarnation: 7}, causeHand, fresh, every, outcomeMissed, false},
		{"NeverStartedRetry", answer{Incarnation: 7}, causeRetry, old, every, "", true},
		{"NeverStartedDeleted", answer{Incarnation: 7}, causeTick, fresh, nil, outcomeInterrupted, false},
		{"ProcessGone", answer{Incarnation: 8, Running: []int64{1}}, causeTick, fresh, every, outcomeInterrupted, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := moment{now: testStart, catchup: time.Minute, lostAfter: time.Minute, zone: "UTC"}
			if c.name == "NeverStartedForLong" {
				m.startable = 6
			}
			got, again := m.resolve(executionRow{ID: 5, Node: "n1", incarnation: 7, Cause: c.cause, Due: c.due}, c.answer, c.answer.known(), c.row)
			if got.Outcome != c.want || again != c.again || got.Outcome != "" && (got.Execution != 5 || got.Incarnation != 7 || len(got.Output) == 0) {
				t.Errorf("resolve with %+v: %+v, again %v, want outcome %q, again %v", c.answer, got, again, c.want, c.again)
			}
		})
	}
}

// newTestScheduler leads over a store whose log is one function call, on a
// clock that the test sets; its one node takes everything.
func newTestScheduler(t *testing.T, now *int64) (*scheduler, *[]dispatch) {
	t.Helper()
	s := newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 100, AuditKept: 365 * 24 * time.Hour, AuditKeptBytes: 256_000_000, Timezone: "UTC"}, newStore(t), slog.New(slog.DiscardHandler))
	s.now = func() time.Time { return timeOf(*now) }
	s.fake().onNodes = func() []node { return []node{{Name: "n1", Incarnation: 7}} }
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
		if err := ctx.Err(); err != nil {
			return applied{}, err
		}
		res := commit(t, s.store, c)[0]
		s.noteApplied(res)
		return res, res.Err
	}
	s.spawn = func(task func()) { task() }
	var sent []dispatch
	s.fake().onStart = func(_ string, d dispatch) error { sent = append(sent, d); return nil }
	s.fake().onAsk = func(string, question) (answer, error) { return answer{Incarnation: 7}, nil }
	if err := s.beginTerm(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	return s, &sent
}

// TestScheduler_WriteMeetsChange: a write whose job changes under it is
// computed again, and its caller sees nothing of it.
func TestScheduler_WriteMeetsChange(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	propose, meet := s.fake().onPropose, 3
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
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
	if got, err := s.store.job("a"); err != nil || got.Schedule != "@every 1h" || jsonText(got.Metadata) != "null" {
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
	jobs, _, err := s.due(row.next)
	if err != nil {
		t.Fatal(err)
	}
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
	s.fake().onAsk = func(string, question) (answer, error) { return answer{Incarnation: 8}, nil } // the process is gone
	propose, busy := s.fake().onPropose, 1
	ended := make(chan struct{})
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
		if c.Finish == nil {
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
	s.fake().onStart = func(string, dispatch) error { return errors.New("the answer did not come") }
	_, res, err := s.runNow(t.Context(), request{ID: "r"}, "a")
	if err != nil {
		t.Fatal(err)
	}
	if nodes := s.moment().nodes; len(nodes) != 0 {
		t.Fatalf("%v are chosen, want none", nodes)
	}
	if _, err := s.report(t.Context(), succeeded(t, s, res.Started[0][0], now)); err != nil {
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
	s.fake().onAsk = func(string, question) (answer, error) { return answer{}, silence }
	s.fake().onEnd = func(string, kill) error { return silence }
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
	s.fake().onAsk = func(string, question) (answer, error) { return answer{Incarnation: 7, Running: []int64{id}}, nil }
	s.fake().onEnd = func(_ string, k kill) error { ended = append(ended, k.Execution); return nil }
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
	s.fake().onNodes = func() []node { return []node{{Name: "n1", Incarnation: 7}, {Name: "n2", Incarnation: 8}} }
	putJobs(t, s, job{Name: "a", Schedule: "@manually"}, job{Name: "b", Schedule: "@every 1s"})
	if _, _, err := s.runNow(t.Context(), request{ID: "r"}, "a"); err != nil {
		t.Fatal(err)
	}
	s.spawn = func(task func()) { go task() }
	slow, fired := make(chan struct{}), make(chan struct{}, 100)
	s.fake().onAsk = func(name string, _ question) (answer, error) {
		if name == "n1" {
			<-slow
		}
		return answer{Incarnation: 8}, nil
	}
	s.fake().onStart = func(string, dispatch) error { fired <- struct{}{}; return nil }
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
	s.fake().onNodes = func() []node { return nodes }
	propose := s.fake().onPropose
	var one sync.Mutex
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
		one.Lock()
		defer one.Unlock()
		if data, err := c.encode(); err != nil || len(data) > commandBytesMax {
			return applied{}, errTooLarge
		}
		return propose(ctx, c)
	}
	if _, err := s.report(t.Context(), succeeded(t, s, res.Started[0][0], now)); err != nil {
		t.Fatal(err)
	}
	now += int64(time.Minute)
	var runs atomic.Int64
	s.fake().onStart = func(_ string, d dispatch) error { runs.Add(int64(len(d.Orders))); return nil }
	for range 2 { // one makes rows of the children, the other runs them
		if _, err := s.fireDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := int64(60 * len(nodes)); runs.Load() != want {
		t.Errorf("%d runs are dispatched, want %d", runs.Load(), want)
	}
}

// TestDecision_Size: no decision takes more JSON than its size, or a command might be too large to propose.
func TestDecision_Size(t *testing.T) {
	const most = math.MinInt64 // in decimal the longest number
	d := decision{Pending: most, Job: most, Rev: most, Due: most, Next: most, Late: true, Outcome: outcomeSkipped,
		Reason: "\x01", Until: most, Count: most, Targets: []target{{"<\x02", math.MaxUint64}, {"", math.MaxUint64}}}
	if doc, err := json.Marshal(d); err != nil || len(doc)+1 > d.size() {
		t.Errorf("%s has %d bytes, %v, want at most %d", doc, len(doc), err, d.size())
	}
}

// TestScheduler_SlowLog: a tick does not come late by the time that it took to
// fire the ones before.
func TestScheduler_SlowLog(t *testing.T) {
	now := testStart
	s, _ := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "a", Schedule: "@every 1s"}, job{Name: "b", Schedule: "@every 2s"})
	propose := s.fake().onPropose
	s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
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

// TestParcels: what a node gets at a time is no more than it takes.
func TestParcels(t *testing.T) {
	orders := make([]order, 400)
	for i := range orders {
		orders[i] = order{Execution: int64(i), Config: map[string]string{"body": strings.Repeat("<", 80_000)}, Processors: map[string]map[string]string{"files": {"log_dir": strings.Repeat("<", 4_000)}}}
	}
	next := int64(0)
	for part := range batches(orders, math.MaxInt, dispatchBytes, (*order).size) {
		doc, err := json.Marshal(dispatch{Orders: part})
		if err != nil || len(doc) > rpcBytesMax {
			t.Errorf("a dispatch has %d bytes, %v, want at most %d", len(doc), err, rpcBytesMax)
		}
		for _, o := range part {
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
			c.Consume = append(c.Consume, decision{Job: r.version.ID, Rev: r.version.Rev, Due: r.next, Until: ahead, Count: 2, Next: ahead + 1e9, Outcome: outcomeMissed, Reason: "why"})
		}
		commit(t, s.store, c)
	}
	now = testStart
	if err := s.noticeGap(t.Context(), timeOf(ahead), timeOf(testStart)); err != nil {
		t.Fatal(err)
	}
	left, err := s.store.firedAfter(testStart+int64(futureMax), 0)
	if err != nil || len(left) != 0 {
		t.Errorf("%d jobs are left in the future, %v", len(left), err)
	}
	if m := s.moment(); m.since > m.now {
		t.Errorf("in office since %d, which is behind now, %d", m.since, m.now)
	}
}

// TestScheduler_ClockBackWhileFiring: a clock may be set back while the leader
// waits for the log, and is noticed all the same.
func TestScheduler_ClockBackWhileFiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := testStart
		s, _ := newTestScheduler(t, &now)
		var skew, decides atomic.Int64
		s.now = func() time.Time { return time.Now().Round(0).Add(time.Duration(skew.Load())) }
		propose := s.fake().onPropose
		s.fake().onPropose = func(ctx context.Context, c *command) (applied, error) {
			if c.Consume != nil && decides.Add(1) == 1 {
				skew.Store(-int64(2 * time.Hour))
			}
			return propose(ctx, c)
		}
		putJobs(t, s, job{Name: "a", Schedule: "@every 1s"})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.fireLoop(ctx) }()
		wait(5 * time.Second)
		if n := decides.Load(); n < 3 {
			t.Errorf("%d ticks were decided in the seconds around the step, want each", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestScheduler_ClockBackBeforeTick: a job that was made, changed or restored by a
// clock ahead of its time comes back when that is set right, though none of its
// ticks was decided.
func TestScheduler_ClockBackBeforeTick(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	putJobs(t, s, job{Name: "changed", Schedule: "@manually"}, job{Name: "replaced", Schedule: "@manually"})
	now += int64(48 * time.Hour)
	for _, name := range []string{"changed", "made"} {
		if _, _, err := s.put(t.Context(), request{ID: "ahead " + name}, job{Name: name, Schedule: "@every 10s"}); err != nil {
			t.Fatal(err)
		}
	}
	file := func(yield func(job, error) bool) {
		_ = yield(job{Name: "restored", Schedule: "@every 10s"}, nil) && yield(job{Name: "replaced", Schedule: "@every 10s"}, nil)
	}
	if _, err := s.restore(t.Context(), request{ID: "restore"}, file, restoreOption{}); err != nil {
		t.Fatal(err)
	}
	now -= int64(48 * time.Hour)
	if err := s.noticeGap(t.Context(), timeOf(now).Add(48*time.Hour), timeOf(now)); err != nil {
		t.Fatal(err)
	}
	now += int64(11 * time.Second)
	*sent = nil
	if _, err := s.fireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	ran := map[string]bool{}
	for _, d := range *sent {
		for _, o := range d.Orders {
			ran[o.Job] = true
		}
	}
	if diff := cmp.Diff([]string{"changed", "made", "replaced", "restored"}, sortedKeys(ran)); diff != "" {
		t.Errorf("eleven seconds after the clock was set right there ran (-want +got):\n%s", diff)
	}
}

// TestScheduler_ClockBackPending: what must follow from a run that ended by a clock
// ahead of its time starts when that is set right, and waits no
// longer than ever for a node that is not there.
func TestScheduler_ClockBackPending(t *testing.T) {
	now := testStart
	s, sent := newTestScheduler(t, &now)
	s.cfg.LostAfter = time.Minute
	putJobs(t, s, job{Name: "parent", Schedule: "@manually"}, job{Name: "child", ParentJob: "parent"},
		job{Name: "elsewhere", ParentJob: "parent", Tags: map[string]string{"role": "db"}})
	now += int64(4 * time.Hour)
	_, res, err := s.runNow(t.Context(), request{ID: "run"}, "parent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.report(t.Context(), succeeded(t, s, res.Started[0][0], now)); err != nil {
		t.Fatal(err)
	}
	*sent = nil
	now -= int64(4 * time.Hour)
	if err := s.noticeGap(t.Context(), timeOf(now).Add(4*time.Hour), timeOf(now)); err != nil {
		t.Fatal(err)
	}
	pass := func(d time.Duration) (left int) {
		for end := now + int64(d); now < end; {
			now += int64(time.Second)
			if _, err := s.fireDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		rows, err := s.store.pending()
		if err != nil {
			t.Fatal(err)
		}
		return len(rows)
	}
	if left := pass(2 * time.Second); left != 1 || len(*sent) != 1 || (*sent)[0].Orders[0].Job != "child" {
		t.Errorf("after two seconds %d rows are pending and %+v was sent, want the child on its way and one that waits for a node", left, *sent)
	}
	if left := pass(s.cfg.LostAfter); left != 0 {
		t.Errorf("%d rows are pending after %s without a node, want none", left, s.cfg.LostAfter)
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
		{"* * * * *", `5 fields in "* * * * *", want six: second, minute, hour, day of month, month, day of week; cron's five become "0 * * * * *"`},
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
			`@hourly, @minutely, @manually, @every <duration>, @at <time> or @after <time> <PT2H`},
		{"@after 2030-01-31T12:00:00Z", `@after "2030-01-31T12:00:00Z" is no time and how late it may run, at most a year, ` +
			`want one such as 2030-01-31T12:00:00Z <PT2H`},
		{"@after 2030-01-31T12:00:00Z <2h", `@after "2030-01-31T12:00:00Z <2h" is no time and how late it may run, at most a year, ` +
			`want one such as 2030-01-31T12:00:00Z <PT2H`},
		{"@after 2030-01-31T12:00:00Z <P", `@after "2030-01-31T12:00:00Z <P" is no time and how late it may run, at most a year, ` +
			`want one such as 2030-01-31T12:00:00Z <PT2H`},
		{"@after soon PT2H", `@after "soon PT2H" is no time and how late it may run, at most a year, ` +
			`want one such as 2030-01-31T12:00:00Z <PT2H`},
		{"@after 2030-01-31T12:00:00Z <P999999999WT999999999S", `@after "2030-01-31T12:00:00Z <P999999999WT999999999S" is no time and how late ` +
			`it may run, at most a year, want one such as 2030-01-31T12:00:00Z <PT2H`},
		{"TZ=UTC @after 2030-01-01T00:00:00Z <PT1H", `a zone before the time in "TZ=UTC @after 2030-01-01T00:00:00Z <PT1H", ` +
			`want it in the time itself`},
		{"TZ=UTC", `nothing after the zone in "TZ=UTC", want six fields or a descriptor`},
		{"TZ=UTC @at 2030-01-01T00:00:00Z", `a zone before the time in "TZ=UTC @at 2030-01-01T00:00:00Z", ` +
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
		{"@after 2037-01-01T00:00:00Z <PT1H", "UTC"},
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

// The simulation of the rules. It is that of the protocol, see sim in
// cluster_test.go, with the real store on each server for log, vote and state,
// and the real scheduler on whichever server leads, or believes that it does:
// jobs come, change and go; nodes take orders, run, die with runs in flight and
// come back; orders, questions, answers and results are lost, late, or come to
// nobody; wall clocks differ and jump. What a scheduler does at the same time
// as other things is a task each, and of all tasks one goes on at a time. A
// ledger keeps account of each entry when it is first applied anywhere, and in
// the end everything is healed and must come to rest with nothing lost.

var (
	rulesSeeds = flag.Int("rules.seeds", 2, "random lives of a cluster with jobs to simulate; few, as the race detector takes half a minute for one")
	rulesSeed  = flag.Uint64("rules.seed", 0, "the one seed to simulate; 0 takes the seeds from 1 on")
)

const (
	lifeEvents = 60_000                 // of chaos, in one life
	eventTime  = 3 * time.Millisecond   // that each of them takes
	restTime   = 100 * time.Millisecond // that a round takes when all is healed
	simJobs    = 7                      // names of jobs
	traceLines = 100                    // of the rules' trace, that a failure prints
	dumpEvery  = 64                     // entries, the states of servers are compared
	keptMax    = 1 << 20                // bytes of SQLite's log that are kept before it is checkpointed
)

// TestSimulation_Rules: whatever happens, every tick of an enabled job has one
// outcome, nothing starts twice, nothing that was acknowledged is lost, and
// when all is healed nothing stays unfinished. A life takes about half a second
// of one core.
func TestSimulation_Rules(t *testing.T) {
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

// TestSimulation_RulesAgain: the same seed is the same life, or a failure could
// not be repeated.
func TestSimulation_RulesAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("simulates two lives")
	}
	first, second := simulate(t, 1), simulate(t, 1)
	if diff := cmp.Diff(first.trace, second.trace); diff != "" || first.hash != second.hash {
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

// world is one simulated life.
type world struct {
	*sim
	dir   string
	dirs  int // made so far
	trace []string
	chaos bool // faults may happen

	passed  int64 // time that no event took
	servers []*simServer
	nodes   []*modelNode
	network []*task // orders on their way
	running *task

	begun    map[int64]bool // executions that a node has started
	observed uint64         // log index that the ledger has come to
	ledger   *ledger

	model    map[string]*job   // what was acknowledged; nil: not there
	unsure   map[string][]*job // what else may be there, of writes without an answer
	writing  map[string]bool   // names that a write is under way for
	requests []string          // ids of runs by hand
	idle     int               // numbers request ids and versions
}

// simulate lives one life.
func simulate(t testing.TB, seed uint64) *world {
	w := &world{
		dir: simTempDir(t), chaos: true, begun: map[int64]bool{}, ledger: newLedger(),
		model: map[string]*job{}, unsure: map[string][]*job{}, writing: map[string]bool{},
	}
	w.sim = newSim(seed, w.plan())
	defer w.close()
	for i := range 1 + w.rnd.IntN(2) {
		n := &modelNode{name: fmt.Sprint("n", i+1), tags: map[string]string{"role": "web"}}
		if i == 0 {
			n.tags[tagMaxConcurrent] = "2"
		}
		n.start(w)
		w.nodes = append(w.nodes, n)
	}
	if err := w.sim.run(); err != nil {
		t.Fatalf("%s\nthe end of the trace:\n%s\nand of the protocol's:\n%s\nrepeat it with: go test -run 'TestSimulation_Rules$' -rules.seed=%d .", err,
			strings.Join(w.trace[max(0, len(w.trace)-traceLines):], "\n"), strings.Join(w.lines[max(0, len(w.lines)-simTail):], "\n"), seed)
	}
	return w
}

func (w *world) plan() simPlan {
	client := func(do func(*simServer)) func(*sim) {
		return func(*sim) {
			if s := w.pickServer(func(s *simServer) bool { return s.office != 0 }); s != nil {
				do(s)
			}
		}
	}
	return simPlan{
		count:      lifeEvents,
		moods:      []int{0, 0, 0, 0, 2, 5, 10, 40},
		storms:     40,
		founders:   func(*sim) (int, int) { return pick(w.rnd, 1, 3, 3, 3, 3, 5), pick(w.rnd, 0, 0, 1) },
		newMachine: func(n *simNode) machine { return w.newServer(n) },
		events: []simEvent{
			{"task", 9000, func(*sim) { w.someTask() }},
			{"node", 3000, func(*sim) { w.nodes[w.rnd.IntN(len(w.nodes))].work(w) }},
			{"put", 90, client(w.put)},
			{"toggle", 20, client(w.toggle)},
			{"remove", 25, client(w.remove)},
			{"run", 60, client(w.run)},
			{"agent", 30, func(*sim) { w.disturbAgent() }},
			{"clock", 4, func(*sim) { w.turnClock() }},
			{"outage", 2, func(*sim) { w.outage() }},
		},
		started:   func(n *simNode) { w.servers[n.slot].started() },
		stopped:   func(n *simNode) { w.servers[n.slot].stopped() },
		touched:   func(n *simNode) { w.servers[n.slot].changeOffice() },
		persisted: func(n *simNode, rd ready) { w.servers[n.slot].persisted(rd) },
		compacted: func(n *simNode) { w.servers[n.slot].compacted() },
		finish:    func(*sim) { w.rest() },
	}
}

func (w *world) close() {
	for _, s := range w.servers {
		s.endTasks()
		s.store.close()
	}
	for _, t := range w.network {
		t.stop()
	}
}

// elapsed is the time that never jumps, in nanoseconds.
func (w *world) elapsed() int64 { return int64(w.count)*int64(eventTime) + w.passed }

func (w *world) logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	w.log("%s", line)
	w.trace = append(w.trace, fmt.Sprintf("%9.3fs %s", float64(w.elapsed())/1e9, line))
}

func (w *world) fatalf(format string, args ...any) {
	w.fail(format, args...)
	panic(w.err)
}

func (w *world) must(err error) {
	if err != nil {
		w.fatalf("%v", err)
	}
}

// chance is true in percent of all cases while faults may happen.
func (w *world) chance(percent float64) bool { return w.chaos && w.rnd.Float64()*100 < percent }

func pick[T any](rnd *rand.Rand, list ...T) T { return list[rnd.IntN(len(list))] }

// pickServer returns a server that runs and for which ok holds, nil if the first
// that is looked at is none.
func (w *world) pickServer(ok func(*simServer) bool) *simServer {
	n := w.pick(func(n *simNode) bool { return w.sim.running(n) != nil && ok(w.servers[n.slot]) })
	if n == nil {
		return nil
	}
	return w.servers[n.slot]
}

// ---- Tasks

// A task is what the product does in a goroutine of its own. It goes on until
// it waits, and only one does at a time.
type task struct {
	kind  taskKind
	name  string
	job   string // that it is a write of, if it is one
	next  func() (ready func() bool, more bool)
	stop  func()
	yield func(ready func() bool) bool
	ready func() bool // whether what it waits for is there
}

// A taskKind says whose goroutine it is.
type taskKind int

const (
	taskClient  taskKind = iota // of somebody who asks the server for something
	taskLoop                    // of the leader's work
	taskSend                    // the same, of its orders on their way
	taskNetwork                 // nobody's: it outlives the server
)

// A crash is what a task panics with when its process dies.
type crash struct{}

func newTask(kind taskKind, name string, do func()) *task {
	t := &task{kind: kind, name: name, ready: func() bool { return true }}
	t.next, t.stop = iter.Pull(func(yield func(func() bool) bool) {
		defer func() {
			if p := recover(); p != nil && p != (crash{}) {
				panic(p)
			}
		}()
		t.yield = yield
		do()
	})
	return t
}

// await has the task that is running wait until ready.
func (w *world) await(ready func() bool) {
	t := w.running
	if t == nil {
		w.fatalf("what no task does must not wait")
	}
	if !t.yield(ready) {
		panic(crash{})
	}
}

func (w *world) sleep(d time.Duration) {
	until := w.elapsed() + int64(d)
	w.await(func() bool { return w.elapsed() >= until })
}

// travel is the time that a message takes.
func (w *world) travel() {
	switch {
	case w.chance(2):
		w.sleep(time.Duration(w.rnd.Int64N(int64(pick(w.rnd, 10*time.Second, 90*time.Second)))))
	case w.chance(50):
		w.sleep(time.Duration(w.rnd.Int64N(int64(50 * time.Millisecond))))
	}
}

// goOn lets one of the tasks that are ready go on, and reports whether there
// was any.
func (w *world) goOn(tasks *[]*task) bool {
	start := w.rnd.IntN(len(*tasks) + 1)
	for i := range *tasks {
		t := (*tasks)[(start+i)%len(*tasks)]
		if !t.ready() {
			continue
		}
		w.running = t
		ready, more := t.next()
		w.running = nil
		if t.ready = ready; !more {
			*tasks = slices.DeleteFunc(*tasks, func(other *task) bool { return other == t })
		}
		return true
	}
	return false
}

// someTask lets something go on somewhere.
func (w *world) someTask() {
	if i := w.rnd.IntN(len(w.servers) + 1); i < len(w.servers) {
		w.servers[i].goOn()
	} else {
		w.goOn(&w.network)
	}
}

// ---- Servers

// A simServer is what a server has beside the protocol. It is its machine: the
// real store, in memory.
type simServer struct {
	w     *world
	n     *simNode
	own   *modelNode // the node that it is
	dir   string
	store *store
	kept  int64  // bytes of SQLite's write-ahead log that survive a crash
	last  uint64 // digest of what came of the last entry
	skew  int64  // of its wall clock, against elapsed

	// Lost in a crash.
	sched    *scheduler
	seen     map[string]heartbeat // what it has heard of other nodes
	tasks    []*task
	waiting  []*simProposal
	office   uint64 // cluster.office
	term     uint64 // of the leader's work, which ends after the office; 0: there is none
	ctx      context.Context
	retire   context.CancelFunc
	acts     bool  // the loops run
	since    int64 // elapsed when they began
	slept    int64 // wall clock when the leader last began to sleep
	look     int64 // elapsed when it looks next
	asked    int64 // elapsed at the end of the last questions, 0: none yet
	trimmed  int64 // elapsed
	whole    int64 // elapsed
	requests requestAge
}

// A heartbeat is what a server knows of a node.
type heartbeat struct {
	incarnation uint64
	at          int64 // elapsed
}

type simProposal struct {
	index uint64
	done  bool
	res   applied
	err   error
}

// newServer gives a server an empty disk.
func (w *world) newServer(n *simNode) *simServer {
	if n.slot == len(w.servers) {
		s := &simServer{w: w, n: n, skew: testStart + w.rnd.Int64N(int64(200*time.Millisecond))}
		s.own = &modelNode{name: n.self.Name, server: s}
		if n.slot%2 == 1 {
			s.own.tags = map[string]string{"role": "web"}
		} else if n.slot == 0 {
			s.own.tags = map[string]string{tagMaxConcurrent: "3"}
		}
		w.servers = append(w.servers, s)
		w.nodes = slices.Insert(w.nodes, n.slot, s.own)
	}
	s := w.servers[n.slot]
	s.shut()
	s.open(w.newDir())
	w.must(s.store.writeMembership(membership{Cluster: "sim"}))
	s.keep()
	s.own.kept = nil
	return s
}

func (w *world) newDir() string {
	w.dirs++
	return fmt.Sprint(w.dir, "/", w.dirs)
}

func (s *simServer) open(dir string) {
	var err error
	s.dir = dir
	s.store, err = openStore(dir)
	s.w.must(err)
	s.w.must(s.store.exec("PRAGMA wal_autocheckpoint = 0"))
}

func (s *simServer) shut() {
	if s.store != nil {
		s.w.must(s.store.close())
		s.w.must(os.RemoveAll(s.dir))
	}
}

// keep implements machine: SQLite's write-ahead log is synced as far as it goes.
func (s *simServer) keep() {
	info, err := os.Stat(s.dir + "/belfry.db-wal")
	s.w.must(err)
	if s.kept = info.Size(); s.kept > keptMax {
		s.w.must(s.store.exec("PRAGMA wal_checkpoint(TRUNCATE)"))
		s.kept = 0
	}
}

// restart implements machine: what was not synced is gone.
func (s *simServer) restart() {
	dir := s.w.newDir()
	s.w.must(os.Mkdir(dir, 0o700))
	for name, size := range map[string]int64{"/belfry.db": math.MaxInt64, "/belfry.db-wal": s.kept} {
		data, err := os.ReadFile(s.dir + name)
		s.w.must(err)
		s.w.must(os.WriteFile(dir+name, data[:min(size, int64(len(data)))], 0o600))
	}
	s.shut()
	s.open(dir)
}

// started begins a new process.
func (s *simServer) started() {
	disk, err := s.store.saved()
	s.w.must(err)
	if diff := cmp.Diff(s.n.disk.read(), disk, cmpopts.EquateEmpty()); diff != "" {
		s.w.fatalf("%s finds on its disk (-want +got):\n%s", s.n.self.Name, diff)
	}
	entries, err := s.store.entries(disk.Base.Index+1, math.MaxInt64)
	s.w.must(err)
	if !slices.EqualFunc(s.n.disk.log, entries, func(r simRecord, e entry) bool {
		return r.Term == e.Term && r.Kind == e.Kind && bytes.Equal(r.Data, e.Data)
	}) {
		s.w.fatalf("%s finds another log on its disk than it wrote", s.n.self.Name)
	}
	if s.w.rnd.IntN(8) == 0 {
		s.w.must(s.store.check())
	}
	s.sched = newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 15, AuditKept: 365 * 24 * time.Hour, AuditKeptBytes: 256_000_000, Timezone: "Europe/Berlin", LostAfter: 30 * time.Second}, s.store, slog.New(slog.DiscardHandler))
	s.sched.cluster = &fakeCluster{onPropose: s.propose, onNodes: s.alive, onStart: s.start, onAsk: s.ask, onEnd: s.end}
	s.sched.spawn = s.spawn
	s.sched.now = func() time.Time { return timeOf(s.now()) }
	s.sched.chance = s.w.rnd.Uint64
	s.sched.wait = func(_ context.Context, d time.Duration) error { s.w.sleep(d); return nil }
	s.seen = map[string]heartbeat{}
	s.w.logf("%s starts, applied is %d", s.n.self.Name, disk.Applied)
	s.own.start(s.w)
}

// stopped ends the process, and with it the node that it is. If the machine
// lives on, what was written is not lost.
func (s *simServer) stopped() {
	s.w.logf("%s dies", s.n.self.Name)
	s.endTasks()
	s.own.crash(s.w)
	s.waiting, s.office, s.term, s.acts = nil, 0, 0, false
	if s.w.rnd.IntN(2) == 0 {
		s.w.keep(s.n)
	}
}

func (s *simServer) endTasks() {
	for _, t := range s.tasks {
		t.stop()
		delete(s.w.writing, t.job)
	}
	s.tasks = nil
}

// persisted makes durable what an install has not: with it all that was applied.
func (s *simServer) persisted(rd ready) {
	if rd.writes() && rd.Snapshot == nil {
		s.w.must(s.store.persist(rd.State, rd.Entries))
		s.w.keep(s.n)
	}
}

func (s *simServer) compacted() {
	kept := s.store.kept
	s.store.kept = logRetention{entries: int(s.store.applied.Load() - s.n.trimmed), bytes: math.MaxInt, slack: 1}
	s.w.must(s.store.update("NORMAL", func() error { return s.store.trimLog(s.store.applied.Load()) }))
	s.store.kept = kept
	s.w.keep(s.n)
}

// image implements machine.
func (s *simServer) image() any {
	f, snap, err := s.store.snapshotFile(context.Background())
	s.w.must(err)
	if snap.position != s.n.applied.position {
		s.w.fatalf("%s: the snapshot ends at %v, applied is %v", s.n.self.Name, snap.position, s.n.applied.position)
	}
	data, err := io.ReadAll(f)
	s.w.must(errors.Join(err, f.Close()))
	return data
}

// install implements machine.
func (s *simServer) install(image any, rd ready) {
	path := s.dir + "/image"
	s.w.must(os.WriteFile(path, image.([]byte), 0o600))
	s.w.must(s.store.install(path, rd.Snapshot.position, rd.State, rd.Entries))
	s.w.must(os.Remove(path))
	s.keep()
}

// apply implements machine. The ledger looks at what nobody has applied before.
func (s *simServer) apply(e entry) {
	s.changeOffice()
	results, err := s.store.applyUpTo(e.Index)
	s.w.must(err)
	if len(results) != 1 || results[0].Err == nil && !results[0].repeated() && results[0].Index != e.Index {
		s.w.fatalf("%s applies entry %d: %+v", s.n.self.Name, e.Index, results)
	}
	res := results[0]
	if e.Index == s.w.observed+1 {
		s.w.observed++
		s.w.observe(s.store, e, res)
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%+v", res)
	if e.Index%dumpEvery == 0 {
		io.WriteString(h, s.dump())
	}
	s.last = h.Sum64()
	if s.sched != nil {
		// What it spawns is no part of a task that asks the nodes and waits meanwhile.
		running := s.w.running
		s.w.running = nil
		s.sched.noteApplied(res)
		s.w.running = running
	}
	if len(s.waiting) > 0 && s.waiting[0].index == e.Index {
		s.waiting[0].done, s.waiting[0].res, s.waiting[0].err = true, res, res.Err
		s.waiting = s.waiting[1:]
	}
}

// sum implements machine.
func (s *simServer) sum() uint64 { return s.last }

// dump implements machine.
func (s *simServer) dump() string {
	dump, err := s.store.dump()
	s.w.must(err)
	return dump
}

// changeOffice is cluster.takeOffice.
func (s *simServer) changeOffice() {
	st := s.n.raft.status()
	switch {
	case s.office != 0 && (!st.Leading || st.Term != s.office):
		s.w.logf("%s leads no more in term %d", s.n.self.Name, s.office)
		s.office = 0
		s.retire()
		for _, p := range s.waiting {
			p.done, p.err = true, errUnknown
		}
		s.waiting = nil
	case s.office == 0 && s.term == 0 && st.mayAct(s.store.applied.Load()):
		s.w.logf("%s leads in term %d", s.n.self.Name, st.Term)
		s.office, s.term = st.Term, st.Term
		s.ctx, s.retire = context.WithCancel(context.Background())
		s.begin(taskLoop, "office", s.takeOffice)
	}
}

// takeOffice is the beginning of scheduler.lead.
func (s *simServer) takeOffice() {
	for err := s.sched.beginTerm(s.ctx, s.term); err != nil; err = s.sched.beginTerm(s.ctx, s.term) {
		if s.excuse(err); s.ctx.Err() != nil {
			return
		}
		s.w.sleep(beginPause)
	}
	if s.ctx.Err() != nil {
		return
	}
	s.acts, s.since, s.asked, s.slept, s.look = true, s.w.elapsed(), 0, s.now(), s.w.elapsed()
	s.trimmed, s.whole, s.requests = s.w.elapsed(), s.w.elapsed(), requestAge{}
	if s.office == slices.Max(slices.Collect(maps.Keys(s.w.leaders))) {
		s.w.verify(s.store)
	}
}

// goOn lets a task of the server go on, perhaps a loop whose time has come.
func (s *simServer) goOn() bool {
	if s.w.sim.running(s.n) == nil {
		return false
	}
	if s.acts && s.office != 0 {
		s.loop()
	}
	more := s.w.goOn(&s.tasks)
	loops := slices.ContainsFunc(s.tasks, func(t *task) bool { return t.kind == taskLoop })
	if s.term != 0 && s.office == 0 && !loops { // the end of scheduler.lead
		s.acts = false
		s.sched.endTerm()
		if !slices.ContainsFunc(s.tasks, func(t *task) bool { return t.kind == taskSend }) {
			s.term = 0
		}
	}
	return more
}

// loop begins what the loops of the leader do next.
func (s *simServer) loop() {
	now := s.w.elapsed()
	if !s.has("ask") && (s.asked == 0 || now-s.asked >= int64(doubtPause)) {
		s.begin(taskLoop, "ask", func() {
			s.excuse(s.sched.askNodes(s.ctx))
			s.asked = s.w.elapsed()
		})
	}
	begun := s.asked != 0 || now-s.since >= int64(firstAnswers)
	if begun && !s.has("fire") && (len(s.sched.wake) > 0 || now >= s.look) {
		s.begin(taskLoop, "fire", s.fire)
	}
	if !s.has("trim") && now-s.trimmed >= int64(trimPause) {
		s.begin(taskLoop, "trim", s.trim)
	}
}

// fire is a round of scheduler.fireLoop, with parts at the same time.
func (s *simServer) fire() {
	woke := s.now()
	s.excuse(s.sched.noticeGap(s.ctx, timeOf(s.slept), timeOf(woke)))
	select {
	case <-s.sched.wake:
	default:
	}
	m := s.sched.moment()
	jobs, pending, err := s.sched.due(m.now)
	s.w.must(err)
	part := func(ids []int64, fire func(context.Context, moment, []int64) error) {
		m := m.withRand(s.sched.newRand())
		s.begin(taskLoop, "part", func() { s.excuse(fire(s.ctx, m, ids)) })
	}
	for ids := range slices.Chunk(jobs, 1+s.w.rnd.IntN(5)) {
		part(ids, s.sched.fireTicks)
	}
	for ids := range slices.Chunk(pending, 1+s.w.rnd.IntN(5)) {
		part(ids, s.sched.firePending)
	}
	s.w.await(func() bool { return !s.has("part") })
	wait, err := s.sched.untilDue(m.now)
	s.w.must(err)
	s.slept, s.look = max(s.now(), woke), s.w.elapsed()+int64(wait)
}

// trim is a round of scheduler.trimLoop.
func (s *simServer) trim() {
	now, elapsed := timeOf(s.now()), s.w.elapsed()
	whole := elapsed-s.whole >= int64(reviewPause)
	if whole {
		s.whole = elapsed
		s.excuse(s.sched.resetFuture(s.ctx))
		s.w.must(s.sched.doubtOld(now))
	}
	s.requests.advance(now, s.store.applied.Load())
	s.excuse(s.sched.trim(s.ctx, s.requests.expired, now, whole))
	s.trimmed = s.w.elapsed()
}

func (s *simServer) begin(kind taskKind, name string, do func()) *task {
	t := newTask(kind, name, do)
	s.tasks = append(s.tasks, t)
	return t
}

func (s *simServer) has(name string) bool {
	return slices.ContainsFunc(s.tasks, func(t *task) bool { return t.name == name })
}

// spawn begins what is done beside the loops. Who asks the nodes waits for
// their answers in a way that no task can.
func (s *simServer) spawn(do func()) {
	if s.w.running != nil && s.w.running.name == "ask" {
		do()
	} else {
		s.begin(taskSend, "send", do)
	}
}

// excuse accepts errors of a leader that has just lost its office.
func (s *simServer) excuse(err error) {
	if err := s.sched.fatal(s.ctx, err); err != nil {
		s.w.fatalf("the leader %s fails: %v", s.n.self.Name, err)
	}
}

func (s *simServer) now() int64 { return s.w.elapsed() + s.skew }

// propose is cluster.propose.
func (s *simServer) propose(_ context.Context, c *command) (applied, error) {
	data, err := c.encode()
	s.w.must(err)
	if s.office != 0 && s.w.chance(50) {
		s.w.sleep(time.Duration(s.w.rnd.Int64N(int64(50 * time.Millisecond))))
	}
	if s.office == 0 {
		return applied{}, errNotLeader
	}
	p := &simProposal{}
	s.w.touch(s.n, "propose", func() {
		if p.index, err = s.n.raft.propose(data); err == nil {
			s.waiting = append(s.waiting, p)
		}
	})
	if err != nil {
		return applied{}, err
	}
	s.w.await(func() bool { return p.done })
	if s.w.chance(30) {
		s.w.sleep(time.Duration(s.w.rnd.Int64N(int64(50 * time.Millisecond))))
	}
	return p.res, p.err
}

// alive are the nodes that this server has heard of lately, and its own.
func (s *simServer) alive() []node {
	var list []node
	for _, n := range s.w.nodes {
		seen, ok := s.seen[n.name]
		if n == s.own {
			seen, ok = heartbeat{n.exec.inc, s.w.elapsed()}, true
		}
		if ok && s.w.elapsed()-seen.at < int64(nodeFailed) {
			tags := map[string]string{"own": n.name}
			maps.Copy(tags, n.tags)
			list = append(list, node{Name: n.name, Incarnation: seen.incarnation, Tags: tags})
		}
	}
	return list
}

var errUnreached = errors.New("no answer")

// start carries a dispatch to a node: or not, or later, or without the answer.
func (s *simServer) start(name string, d dispatch) error {
	n := s.w.node(name)
	if n == s.own {
		return n.refuse(s.w, d)
	}
	err := fmt.Errorf("%w: %w", errRefused, errNoConnection)
	if !s.call(n, func() func() {
		refused := n.refuse(s.w, d)
		return func() { err = refused }
	}) {
		return errUnreached
	}
	return err
}

func (s *simServer) ask(name string, q question) (a answer, err error) {
	n := s.w.node(name)
	if n == s.own {
		return n.ask(s.w, q)
	}
	err = errUnreached
	s.call(n, func() func() {
		given, refused := n.ask(s.w, q)
		return func() { a, err = given, refused }
	})
	return a, err
}

func (s *simServer) end(name string, k kill) error {
	n := s.w.node(name)
	if n == s.own {
		return n.kill(s.w, k)
	}
	err := error(errUnreached)
	s.call(n, func() func() {
		refused := n.kill(s.w, k)
		return func() { err = refused }
	})
	return err
}

// call does something at another node, if that is up, and returns when what do
// returned for that has been called here, or it is known that nobody listens;
// false if neither came in time. The node may do it much later, even if this
// server has died meanwhile, or once more; then nobody listens.
func (s *simServer) call(n *modelNode, do func() (answer func())) bool {
	answered, until := false, s.w.elapsed()+int64(5*time.Second)
	carry := func(heard bool) {
		s.w.travel()
		if !s.reaches(n) {
			return
		}
		if n.up && n.server == nil && s.w.chance(3) { // a restart that nobody knows of yet
			n.crash(s.w)
			n.start(s.w)
			n.beat(s.w)
		}
		up, exec, answer := n.up, n.exec, func() {}
		if up {
			answer = do()
			s.w.travel()
		}
		if heard && n.up == up && n.exec == exec && n.reaches(s) && !s.w.chance(2) && s.w.elapsed() < until {
			answer()
			answered = true
		}
	}
	send := func(do func()) { s.w.network = append(s.w.network, newTask(taskNetwork, "call", do)) }
	late := s.w.chance(5)
	if !late || s.w.chance(50) {
		send(func() { carry(true) })
	}
	if late {
		send(func() {
			s.w.sleep(time.Duration(s.w.rnd.Int64N(int64(90 * time.Second))))
			carry(false)
		})
	}
	s.w.await(func() bool { return answered || s.w.elapsed() >= until })
	return answered
}

// reaches reports whether a message comes through, be it to a machine where
// nobody listens.
func (s *simServer) reaches(n *modelNode) bool {
	if n.server != nil {
		return !s.w.cut[s.n.slot][n.server.n.slot] && !n.server.n.paused
	}
	return n.deaf>>s.n.slot&1 == 0
}

// reaches reports whether a message comes through to a server.
func (n *modelNode) reaches(s *simServer) bool {
	if s.w.sim.running(s.n) == nil || n.server != nil && n.server.n.paused {
		return false
	}
	if n.server != nil {
		return n.server == s || !s.w.cut[n.server.n.slot][s.n.slot]
	}
	return n.deaf>>s.n.slot&1 == 0
}

// observe has the ledger look at an entry that nobody had applied before.
func (w *world) observe(s *store, e entry, res applied) {
	var c *command
	if e.Kind == entryCommand {
		var err error
		c, err = decodeCommand(e.Data)
		w.must(err)
		for _, r := range c.Finish {
			if r.Closed {
				w.checkClosing(s, c.Now, r)
			}
		}
	}
	w.must(w.ledger.observe(s, e, res))
}

// checkClosing expects that nothing is closed which its node may still start:
// the process that it was given to is gone, or it is too late or in vain to
// order it again.
func (w *world) checkClosing(s *store, now int64, c report) {
	r := w.ledger.started[c.Execution]
	row, err := s.execution(c.Execution)
	if r.ended || err != nil || row.Finished == 0 {
		return // it was not accepted
	}
	switch i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.exec != nil && n.exec.inc == row.incarnation }); {
	case i < 0 || w.ledger.gone(s, r.job) || c.Outcome == outcomeLost:
	case c.Outcome == outcomeMissed && !w.nodes[i].up: // it took no connection
	case c.Outcome == outcomeMissed && r.cause == causeTick && r.due < now-int64(time.Minute):
	default:
		w.fatalf("execution %d is closed as %s, and the process of %s that it was given to lives", c.Execution, c.Outcome, w.nodes[i].name)
	}
}

// ---- What else happens

// turnClock lets the wall clock of a server jump.
func (w *world) turnClock() {
	s := w.servers[w.rnd.IntN(len(w.servers))]
	jump := time.Duration(pick(w.rnd, w.rnd.Int64N(int64(time.Minute)), w.rnd.Int64N(int64(2*time.Hour)), -w.rnd.Int64N(int64(3*time.Hour))))
	s.skew += int64(jump)
	w.logf("the clock of %s jumps by %v", s.n.self.Name, jump)
}

// outage kills all servers, for a while.
func (w *world) outage() {
	for _, n := range w.sim.nodes {
		if n.raft != nil {
			w.crash(n)
		}
	}
	w.passed += w.rnd.Int64N(int64(3 * time.Minute))
}

// disturbAgent restarts an agent, or cuts it off.
func (w *world) disturbAgent() {
	n := w.nodes[w.rnd.IntN(len(w.nodes))]
	switch {
	case n.server != nil:
	case !n.up:
		n.start(w)
	case w.rnd.IntN(2) == 0:
		n.deaf = pick(w.rnd, 0, 0, w.rnd.Uint32(), math.MaxUint32)
		w.logf("%s does not reach the servers %b", n.name, n.deaf)
	default:
		n.crash(w)
		if w.rnd.IntN(2) == 0 {
			n.start(w) // before the leader knows
		}
	}
}

// ---- What clients do

// name draws one that no write is under way for, "" if there is one.
func (w *world) name() string {
	name := fmt.Sprintf("job-%d", w.rnd.IntN(simJobs))
	if w.writing[name] {
		return ""
	}
	return name
}

func (w *world) request() request {
	w.idle++
	return request{Actor: actorAnonymous, ID: fmt.Sprint("request ", w.idle)}
}

// randomJob is a new definition for a name.
func (w *world) randomJob(name string, now int64) job {
	w.idle++
	j := job{Name: name, Executor: executorShell, Metadata: map[string]string{"version": fmt.Sprint(w.idle)},
		Concurrency: pick(w.rnd, concurrencyAllow, concurrencyForbid, concurrencyQueue, concurrencyReplace), Mutex: pick(w.rnd, "", "", "", "m", "n")}
	j.Schedule = pick(w.rnd, "@every 1s", "@every 2s", "@every 7s", "*/2 * * * * *", "*/5 * * * * *", "0 * * * * *", "30 */10 * * * *", "@manually", "@minutely",
		"@at "+timeOf(now+w.rnd.Int64N(int64(time.Minute))).Format(time.RFC3339))
	j.Retries = pick[uint](w.rnd, 0, 0, 1, 2)
	j.Tags = pick(w.rnd, nil, map[string]string{"role": "web"}, map[string]string{"role": "web:1"}, map[string]string{"role": "none"}, map[string]string{"own": pick(w.rnd, w.nodes...).name})
	j.Ephemeral = w.rnd.IntN(10) == 0
	j.Disabled = w.rnd.IntN(10) == 0
	switch w.rnd.IntN(8) {
	case 0:
		j.ParentJob = fmt.Sprintf("job-%d", w.rnd.IntN(simJobs))
	case 1:
		j.StartsAt = instant(now + w.rnd.Int64N(int64(time.Minute)))
	case 2:
		j.ExpiresAt = instant(now + w.rnd.Int64N(int64(time.Minute)))
	}
	return j
}

// write has a client ask a server for one write of a job, and keeps account of
// what may be there now. do returns the job as it is then.
func (s *simServer) write(what, name string, after []*job, do func() (*job, error)) {
	w := s.w
	if name == "" {
		return
	}
	w.writing[name] = true
	w.unsure[name] = append(w.unsure[name], after...) // if it gets no answer
	s.begin(taskClient, what, func() {
		have, err := do()
		w.logf("%s %s on %s: %+v, %v", what, name, s.n.self.Name, have, err)
		delete(w.writing, name)
		var r refusal
		var bad badInput
		switch {
		case err == nil:
			w.model[name], w.unsure[name] = have, nil
		case errors.As(err, &r) || errors.As(err, &bad) || errors.Is(err, errNotLeader) || errors.Is(err, errBusy):
			w.unsure[name] = w.unsure[name][:len(w.unsure[name])-len(after)]
		case !errors.Is(err, errUnknown):
			w.fatalf("a write of %s: %v", name, err)
		}
	}).job = name
}

func (w *world) put(s *simServer) {
	name := w.name()
	j := w.randomJob(name, s.now())
	if old := w.model[name]; old != nil && w.rnd.IntN(3) == 0 {
		kept := *old // only what does not decide when it is due
		kept.Metadata, kept.Retries, kept.Concurrency = j.Metadata, j.Retries, j.Concurrency
		j = kept
	}
	s.write("put", name, []*job{&j}, func() (*job, error) {
		_, _, err := s.sched.put(context.Background(), w.request(), j)
		return &j, err
	})
}

// toggle expects that what is turned over was one of those that may be there.
func (w *world) toggle(s *simServer) {
	name := w.name()
	var after []*job
	for _, j := range w.possible(name) {
		if j != nil {
			turned := *j
			turned.Disabled = !j.Disabled
			after = append(after, &turned)
		}
	}
	s.write("toggle", name, after, func() (*job, error) {
		row, _, err := s.sched.toggle(context.Background(), w.request(), name, nil)
		if err != nil {
			return nil, err
		}
		j := row.definition()
		w.expect(name, &j, after)
		return &j, nil
	})
}

func (w *world) remove(s *simServer) {
	name := w.name()
	s.write("remove", name, []*job{nil}, func() (*job, error) {
		_, _, err := s.sched.delete(context.Background(), w.request(), name)
		return nil, err
	})
}

// run starts a job by hand, sometimes with a request that was made before.
func (w *world) run(s *simServer) {
	req, repeated := w.request(), false
	if len(w.requests) > 0 && w.rnd.IntN(4) == 0 {
		req.ID, repeated = w.requests[w.rnd.IntN(len(w.requests))], true
	}
	name := fmt.Sprintf("job-%d", w.rnd.IntN(simJobs))
	s.begin(taskClient, "run", func() {
		defer func() { w.requests = append(w.requests, req.ID) }() // even if the server dies
		row, res, err := s.sched.runNow(context.Background(), req, name)
		w.logf("run %s %q on %s: started %v, refused %q: %v", name, req.ID, s.n.self.Name, res.Started, res.Refused, err)
		switch {
		case err != nil:
		case !repeated && res.repeated():
			w.fatalf("%q is new and was taken for a repetition", req.ID)
		case res.repeated() && len(res.Started) > 0:
			w.fatalf("%q was repeated and started something", req.ID)
		case !res.repeated() && res.Refused == "" && len(res.Started[0]) == 0 && res.Armed == 0: // it does not wait either
			w.fatalf("a run of %s by hand was accepted and started nothing", row.Name)
		}
	})
}

// verify compares what a leader has with what was acknowledged.
func (w *world) verify(s *store) {
	for i := range simJobs {
		name := fmt.Sprintf("job-%d", i)
		if w.writing[name] {
			continue
		}
		var have *job
		row, err := s.job(name)
		if !errors.Is(err, errNoJob) {
			w.must(err)
			j := row.definition()
			have = &j
		}
		w.expect(name, have, w.possible(name))
		w.model[name], w.unsure[name] = have, nil
	}
}

// possible is what may be there.
func (w *world) possible(name string) []*job {
	list := append([]*job{w.model[name]}, w.unsure[name]...)
	if slices.ContainsFunc(list, func(j *job) bool { return j != nil && j.Ephemeral }) {
		list = append(list, nil) // its success has deleted it
	}
	return list
}

func (w *world) expect(name string, have *job, want []*job) {
	if !slices.ContainsFunc(want, func(j *job) bool { return cmp.Equal(have, j, cmpopts.EquateEmpty()) }) {
		w.fatalf("job %s is %+v, want one of (-want +have)\n%s", name, have, cmp.Diff(want, []*job{have}))
	}
}

// ---- What nodes do

// modelNode is a node. Its books are the real executor's, which is never told
// to begin anything; the runs are made up.
type modelNode struct {
	name   string
	server *simServer // that it is part of, nil: it is an agent
	tags   map[string]string
	deaf   uint32   // slots of servers that an agent does not reach
	kept   []result // on its disk

	up    bool
	exec  *executor
	heard uint64 // latest term of a leader that it has answered
	runs  map[int64]*modelRun
	since map[int64]int64 // elapsed when what it holds ended
	busy  int64           // elapsed until which a delivery is under way
}

type modelRun struct {
	run            *run
	started, until int64 // elapsed
}

func (w *world) node(name string) *modelNode {
	i := slices.IndexFunc(w.nodes, func(n *modelNode) bool { return n.name == name })
	return w.nodes[i]
}

// start begins a new process of the node. What it held on disk it holds again.
func (n *modelNode) start(w *world) {
	n.up, n.busy, n.heard = true, 0, 0
	n.exec = &executor{cfg: executorConfig{Node: n.name}, inc: w.rnd.Uint64() | 1, taken: idSet{}, runs: map[int64]*run{}, held: map[int64]*held{}}
	n.runs, n.since = map[int64]*modelRun{}, map[int64]int64{}
	for _, r := range n.kept {
		n.exec.taken.add(r.Execution)
		n.exec.held[r.Execution] = &held{result: r}
	}
	w.logf("%s: a new process, holds %d", n.name, len(n.kept))
}

// crash loses what runs, and results that had no time to reach the disk.
func (n *modelNode) crash(w *world) {
	n.up, n.kept = false, nil
	for _, id := range slices.Sorted(maps.Keys(n.exec.held)) {
		if w.elapsed()-n.since[id] >= int64(diskAfter) {
			n.kept = append(n.kept, n.exec.held[id].result)
		}
	}
	w.logf("%s: the process ends, runs %d, holds %d, on disk %d", n.name, len(n.runs), len(n.exec.held), len(n.kept))
}

// refuse takes orders, with errors that say when it does not.
func (n *modelNode) refuse(w *world, d dispatch) error {
	if err := n.exec.start(d); err != nil {
		w.logf("%s: refuses %d orders of term %d: %v", n.name, len(d.Orders), d.Term, err)
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if d.Term < n.heard {
		w.fatalf("%s takes orders of term %d and has answered the leader of term %d", n.name, d.Term, n.heard)
	}
	n.heard = d.Term
	for _, o := range d.Orders {
		r := n.exec.runs[o.Execution]
		if had := n.runs[o.Execution]; r != nil && (had == nil || had.run != r) {
			n.begin(w, r)
		}
	}
	return nil
}

// begin starts a run and expects that nobody has started it before, and that
// it is on record as what its order says. One that was given up as lost may
// start.
func (n *modelNode) begin(w *world, run *run) {
	o := run.order
	w.logf("%s: begins %d of %s, attempt %d, due %d", n.name, o.Execution, o.Job, o.Attempt, o.ScheduledAt)
	if w.begun[o.Execution] {
		w.fatalf("execution %d of %s starts a second time, on %s", o.Execution, o.Job, n.name)
	}
	w.begun[o.Execution] = true
	r, ok := w.ledger.started[o.Execution]
	if !ok || r.ended && !r.lost {
		w.fatalf("execution %d of %s starts on %s, but on record it has %+v", o.Execution, o.Job, n.name, r)
	}
	if n.exec.inc != r.incarnation {
		w.fatalf("execution %d of %s starts in another process than it was given to, on %s", o.Execution, o.Job, n.name)
	}
	if o.Group != r.group || o.ScheduledAt != r.due || o.Attempt != r.attempt {
		w.fatalf("execution %d of %s is ordered as %+v, want %+v", o.Execution, o.Job, o, r)
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
	n.runs[o.Execution] = &modelRun{run, w.elapsed(), w.elapsed() + length}
}

func (n *modelNode) ask(w *world, q question) (answer, error) {
	a, err := n.exec.ask(q)
	if err == nil {
		n.heard = max(n.heard, q.Term)
	}
	slices.Sort(a.Running)
	slices.SortFunc(a.Held, func(a, b result) int { return int(a.Execution - b.Execution) })
	w.logf("%s: is asked for %v in term %d: runs %v, holds %d, %v", n.name, q.Executions, q.Term, a.Running, len(a.Held), err)
	return a, err
}

func (n *modelNode) kill(w *world, k kill) error {
	err := n.exec.kill(k)
	if err == nil {
		n.heard = max(n.heard, k.Term)
	}
	w.logf("%s: is to end %d in term %d: %v", n.name, k.Execution, k.Term, err)
	if r := n.runs[k.Execution]; err == nil && r != nil {
		delete(n.runs, k.Execution)
		n.since[k.Execution] = w.elapsed()
		h := n.exec.held[k.Execution]
		h.result.Started, h.result.Finished = testStart+r.started, testStart+w.elapsed()
	}
	return err
}

// work ends runs whose time has come, sends a heartbeat, and delivers.
func (n *modelNode) work(w *world) {
	if !n.up || n.server != nil && n.server.n.paused {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(n.runs)) {
		r := n.runs[id]
		if r.until > w.elapsed() {
			continue
		}
		outcome := outcomeSuccess
		if w.chance(30) {
			outcome = outcomeFailed
		}
		delete(n.runs, id)
		n.since[id] = w.elapsed()
		n.exec.finishLocked(r.run, result{Execution: id, Started: testStart + r.started, Finished: testStart + r.until, Outcome: outcome, Output: []byte(outcome)})
		w.logf("%s: %d ends: %s", n.name, id, outcome)
	}
	n.beat(w)
	if !w.chance(60) {
		n.deliver(w)
	}
}

// beat sends a heartbeat to the servers.
func (n *modelNode) beat(w *world) {
	for _, s := range w.servers {
		if n.reaches(s) && !w.chance(20) {
			s.seen[n.name] = heartbeat{n.exec.inc, w.elapsed()}
		}
	}
}

// deliver hands some results to a server that leads, or believes that it does.
// The acknowledgement may be lost.
func (n *modelNode) deliver(w *world) {
	s := w.pickServer(func(s *simServer) bool { return s.office != 0 && n.reaches(s) })
	if s == nil || len(n.exec.held) == 0 || w.elapsed() < n.busy {
		return
	}
	ids := slices.Sorted(maps.Keys(n.exec.held))
	w.rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	var batch []result
	for _, id := range ids[:1+w.rnd.IntN(len(ids))] {
		batch = append(batch, n.exec.held[id].result)
		if w.chance(3) {
			batch = append(batch, n.exec.held[id].result)
		}
	}
	n.busy = w.elapsed() + int64(5*time.Second)
	exec := n.exec
	s.begin(taskClient, "report", func() {
		taken, err := s.sched.report(context.Background(), batch)
		if err != nil && !errors.Is(err, errNotLeader) && !errors.Is(err, errUnknown) && !errors.Is(err, errBusy) {
			w.fatalf("a report to %s: %v", s.n.self.Name, err)
		}
		w.travel()
		if n.exec == exec && s.reaches(n) && !w.chance(10) {
			exec.acknowledge(taken)
			n.busy = 0
		}
	})
}

// ---- The end

// rest expects that everything comes to rest when nothing fails any more:
// first with the jobs going on, then with all of them disabled.
func (w *world) rest() {
	w.logf("all is healed")
	w.chaos = false
	for _, n := range w.nodes {
		if n.deaf = 0; !n.up {
			n.start(w)
		}
	}
	w.pass(10 * time.Second)
	leader := w.servers[w.pick(leading).slot]
	w.verify(leader.store)
	late, err := leader.store.ids("SELECT id FROM jobs JOIN job_state ON job = id WHERE deleted = 0 AND armed AND next > ? AND next < ?",
		int64(never), leader.now()-int64(2*tickSlack))
	w.must(err)
	if len(late) > 0 {
		w.fatalf("jobs %v have ticks that have been due for %s although all is healed", late, 2*tickSlack)
	}
	for i := range simJobs {
		name := fmt.Sprintf("job-%d", i)
		if j := w.model[name]; j != nil && !j.Disabled {
			leader.begin(taskClient, "disable", func() {
				row, _, err := leader.sched.toggle(context.Background(), w.request(), name, nil)
				if err != nil && !j.Ephemeral {
					w.fatalf("disabling %s: %v", name, err)
				}
				if err == nil && !row.Disabled {
					w.fatalf("toggling %s, which was enabled, made it %+v", name, row)
				}
			})
		}
	}
	w.pass(retryWaitMax + 10*time.Second)
	rows, err := leader.store.unfinishedExecutions()
	if w.must(err); len(rows) > 0 {
		w.fatalf("unfinished although all is healed: %+v", rows)
	}
	pending, err := leader.store.pending()
	if w.must(err); len(pending) > 0 {
		w.fatalf("pending although all is healed: %+v", pending)
	}
	for _, n := range w.nodes {
		if len(n.runs)+len(n.exec.runs)+len(n.exec.held) > 0 {
			w.fatalf("%s still runs or holds something: %v %v", n.name, n.exec.runs, n.exec.held)
		}
	}
	w.must(w.ledger.settled(leader.store, leader.now()))
	w.compare()
	for _, s := range w.servers {
		w.must(s.store.check())
	}
}

// pass lets time go by in which nothing fails.
func (w *world) pass(d time.Duration) {
	for end := w.elapsed() + int64(d); w.elapsed() < end; w.passed += int64(restTime) {
		for _, n := range w.nodes {
			n.work(w)
		}
		for more := true; more; {
			more = w.goOn(&w.network)
			for _, s := range w.servers {
				more = s.goOn() || more
			}
		}
		if w.round(); w.err != nil {
			panic(w.err)
		}
	}
}

// A ledger follows a log beside the store and keeps its own account of what
// must come of it: every tick of an enabled job is decided exactly once and in
// order, every pending row is consumed exactly once, and every execution ends
// at most once. It shares the schedule dialect with the product, and no rule.
type ledger struct {
	zone      string
	jobs      map[int64]*ledgerJob
	pending   map[int64]string     // rows that wait → cause
	started   map[int64]startedRun // every execution that was ever accepted
	running   map[int64]bool       // those of them that have not ended
	decisions map[tickKey]uint64   // tick → log index of what became of it
	requests  map[string]uint64    // id → log index of its acceptance, until it need not be remembered
}

// ledgerJob is what the ledger expects of a job that is not deleted.
type ledgerJob struct {
	def     job
	next    int64 // the tick that must be decided next
	fired   int64 // the last one that was, or when next was computed otherwise
	ticks   int64 // decided so far
	resets  int   // times that a wrong clock was set back
	deleted bool
}

// startedRun identifies an execution for whoever asks whether it came twice.
type startedRun struct {
	job, group, due int64
	slot, attempt   int
	cause           string
	incarnation     uint64 // of the process that it was given to
	node            string
	ended, lost     bool // lost: given up, it may yet start
	closed          bool // by the leader's word, as lost or killed: it may go on
}

// tickKey names a tick. A tick may come again after a wrong clock was set back.
type tickKey struct {
	job, due int64
	resets   int
}

func newLedger() *ledger {
	return &ledger{jobs: map[int64]*ledgerJob{}, pending: map[int64]string{}, started: map[int64]startedRun{}, running: map[int64]bool{}, decisions: map[tickKey]uint64{}, requests: map[string]uint64{}}
}

// observe takes note of one entry that the store has just applied. s is the
// store as it is then; the caller owns its writing side.
func (l *ledger) observe(s *store, e entry, res applied) error {
	if e.Kind != entryCommand || res.Err != nil || res.repeated() {
		return nil
	}
	c, err := decodeCommand(e.Data)
	if err != nil {
		return err
	}
	if at, ok := l.requests[c.Request]; ok && c.Request != "" && !res.More {
		return fmt.Errorf("log entry %d: %q was accepted before, at %d", e.Index, c.Request, at)
	}
	l.requests[c.Request] = e.Index
	switch {
	case c.Found != nil:
		l.zone = c.Found.Timezone
	case c.Put != nil:
		for i, p := range c.Put {
			err = orElse(err, l.put(c.Now, p, res.Jobs[i]))
		}
	case c.Delete != nil:
		l.jobs[c.Delete.ID].deleted = true
	case c.Consume != nil:
		for i, d := range c.Consume {
			if res.Accepted[i] && d.Due != 0 {
				err = orElse(err, l.decide(e.Index, c.Now, d, res.Started[i]))
			}
		}
	case c.Restore != nil:
		err = l.restored(s, int64(e.Index))
	case c.Reset != nil:
		err = l.reset(s, c)
	case c.Trim != nil:
		maps.DeleteFunc(l.requests, func(_ string, at uint64) bool { return at <= c.Trim.Requests })
	}
	err = orElse(err, l.followDisabled(s, c.Now))
	if err = orElse(err, l.followPending(s, c, res)); err == nil {
		err = orElse(l.followExecutions(s, c), l.checkRules(c, res))
	}
	if err != nil {
		return fmt.Errorf("log entry %d: %w", e.Index, err)
	}
	return nil
}

// followDisabled expects of a job that its failures have disabled that it is one of those that say so, and that none of
// its ticks was left without an outcome.
func (l *ledger) followDisabled(s *store, now int64) error {
	for id, j := range l.jobs {
		var disabled bool
		if j.def.DisableAfter == 0 || j.def.Disabled || s.get("SELECT disabled FROM jobs WHERE id = ? AND deleted = 0", []any{id}, &disabled) != nil || !disabled {
			continue
		}
		if j.def.armed() && j.next != never && j.next <= now {
			return fmt.Errorf("job %s was disabled at %d, and its tick %d has no outcome", j.def.Name, now, j.next)
		}
		j.def.Disabled = true
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
	after := max(now, j.fired)
	j.fired = after
	if !p.Job.armed() || p.Next == never {
		return nil
	}
	if p.Next <= after {
		return fmt.Errorf("job %s: next is %d after a change at %d with all up to %d decided", p.Job.Name, p.Next, now, after)
	}
	s := p.Job.schedule(l.zone)
	if want := nanosOf(s.next(timeOf(after))); p.Job.StartsAt == 0 && s.calendar != nil && want != p.Next {
		return fmt.Errorf("job %s: next is %d, want the first tick %d behind %d", p.Job.Name, p.Next, want, after)
	}
	return nil
}

// restored takes the jobs that a restore has made or changed as they are.
func (l *ledger) restored(s *store, rev int64) error {
	var ids []int64
	err := s.each("SELECT id FROM jobs WHERE rev = ? AND deleted = 0", []any{rev}, func(scan scanner) error {
		ids = append(ids, 0)
		return scan(&ids[len(ids)-1])
	})
	if err != nil {
		return err
	}
	rows, err := s.jobsByID(ids)
	for _, r := range rows {
		j := l.jobs[r.version.ID]
		if j == nil {
			j = &ledgerJob{}
			l.jobs[r.version.ID] = j
		}
		j.next, j.fired = r.next, r.fired
		j.def = r.definition()
	}
	return err
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
	if len(started) > len(d.Targets) {
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
	waits := map[int64]string{}
	on := map[int64]bool{} // rows that wait for something to be free
	expanded := slices.ContainsFunc(c.Consume, func(d decision) bool { return l.pending[d.Pending] == causeChildren })
	err := s.each("SELECT id, cause, waits_for FROM pending", nil, func(scan scanner) error {
		var id int64
		var cause, thing string
		err := scan(&id, &cause, &thing)
		waits[id] = cause
		on[id] = thing != ""
		if l.pending[id] == "" && c.Finish == nil && !(expanded && cause == causeChild) && !(c.Consume != nil && thing != "") {
			return fmt.Errorf("pending row %d appeared out of nothing", id)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, d := range c.Consume {
		switch {
		case d.Pending == 0:
		case l.pending[d.Pending] == "" && len(res.Started[i]) > 0:
			return fmt.Errorf("pending row %d was consumed a second time", d.Pending)
		case on[d.Pending] && len(res.Started[i]) == 0:
		case l.pending[d.Pending] != "" && res.Accepted[i] && waits[d.Pending] != "":
			return fmt.Errorf("pending row %d was decided and waits still", d.Pending)
		case l.pending[d.Pending] == causeChildren:
		case l.pending[d.Pending] != "" && res.Accepted[i] && len(res.Started[i]) == 0:
			if err := l.recorded(s, res.Index); err != nil {
				return fmt.Errorf("pending row %d: %w", d.Pending, err)
			}
		}
		if res.Accepted[i] {
			delete(l.pending, d.Pending)
		}
	}
	for id := range l.pending {
		if waits[id] != "" || c.Delete != nil || c.Finish != nil {
			continue
		}
		if err := l.recorded(s, res.Index); c.Consume == nil && c.Reset == nil || err != nil { // else a newer run took its place
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

// checkRules expects that nothing starts beside what excludes it, and that no node has more than it takes at once.
func (l *ledger) checkRules(c *command, res applied) error {
	loads := map[string]int{}
	for id := range l.running {
		loads[l.started[id].node]++
	}
	for node, limit := range c.Limits {
		if loads[node] > limit {
			return fmt.Errorf("%s has %d executions and takes %d at once", node, loads[node], limit)
		}
	}
	if res.Bound {
		return nil
	}
	for _, id := range slices.Concat(res.Started...) {
		r := l.started[id]
		j := l.jobs[r.job]
		for other := range l.running {
			o := l.started[other]
			held := l.jobs[o.job]
			switch {
			case o.job == r.job && o.group == r.group || j == nil || held == nil:
			case o.job == r.job && j.def.Concurrency != "" && j.def.Concurrency != concurrencyAllow:
				return fmt.Errorf("execution %d of %s, which says %s, started beside %d of another group", id, j.def.Name, j.def.Concurrency, other)
			case j.def.Mutex != "" && j.def.Mutex == held.def.Mutex:
				return fmt.Errorf("execution %d of %s started beside %d of %s, which has the same mutex", id, j.def.Name, other, held.def.Name)
			}
		}
	}
	return nil
}

// followExecutions takes note of what began and ended.
func (l *ledger) followExecutions(s *store, c *command) error {
	if c.Consume == nil && c.Finish == nil && c.Bind == nil {
		return nil
	}
	unfinished := map[int64]bool{}
	err := s.each("SELECT id, job, grp, slot, attempt, due, cause, incarnation, node FROM executions WHERE finished = 0 ORDER BY id", nil, func(scan scanner) error {
		var id int64
		var r startedRun
		var incarnation int64
		if err := scan(&id, &r.job, &r.group, &r.slot, &r.attempt, &r.due, &r.cause, &incarnation, &r.node); err != nil {
			return err
		}
		r.incarnation = uint64(incarnation)
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
		if c.Finish == nil {
			return fmt.Errorf("execution %d ended without a word of anybody", id)
		}
		r := l.started[id]
		r.ended = true
		r.lost = slices.ContainsFunc(c.Finish, func(r report) bool { return r.Closed && r.Execution == id && r.Outcome == outcomeLost })
		r.closed = r.lost || slices.ContainsFunc(c.Finish, func(r report) bool { return r.Closed && r.Execution == id && r.Outcome == outcomeKilled })
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
	for name, answerFirst := range map[string]bool{"BeforeTheAnswer": false, "AfterTheAnswer": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testSlowRefusal(t, answerFirst) })
		})
	}
}

func testSlowRefusal(t *testing.T, answerFirst bool) {
	st, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex // guards what follows
	alive := []node{{Name: "n1", Incarnation: 1, Tags: map[string]string{"role": "x"}}}
	taken, tries := map[string]int{}, 0
	refusal, answered := make(chan struct{}), make(chan struct{})

	sched := newScheduler(schedulerConfig{Catchup: time.Minute, ExecutionsKept: 100, AuditKept: 365 * 24 * time.Hour, AuditKeptBytes: 256_000_000, Timezone: "UTC", LostAfter: time.Minute}, st, slog.New(slog.DiscardHandler))
	s := &testServer{t: t, api: &api{store: st, scheduler: sched, plane: newTestPlane(t, "node1", newFakeNode(1), nil), log: sched.log}}
	s.handler = s.api.handler()
	sched.fake().onPropose = s.propose
	sched.fake().onNodes = func() []node {
		mu.Lock()
		defer mu.Unlock()
		return alive
	}
	sched.fake().onStart = func(name string, d dispatch) error {
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
	sched.fake().onAsk = func(name string, q question) (answer, error) {
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
	alive = []node{{Name: "n2", Incarnation: 2, Tags: map[string]string{"role": "x"}}}
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
		if silent := sched.unresponsive["n1"]; silent != (step == refusal) {
			t.Errorf("n1 gave no connection: %v; it is kept from new orders: %v", step == refusal, silent)
		}
		sched.mu.Unlock()
		wait(2 * doubtPause)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(map[string]int{"n2": 1}, taken); diff != "" {
		t.Errorf("orders that the nodes took (-want +got):\n%s", diff)
	}
	cancel()
	if err := errors.Join(<-ended, st.check(), st.close()); err != nil {
		t.Error(err)
	}
}

// TestSchedule_Words: what a schedule says, said in English.
func TestSchedule_Words(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{"* * * * * *", "every second"},
		{"*/5 * * * * *", "every 5 seconds"},
		{"0 * * * * *", "every minute"},
		{"@minutely", "every minute"},
		{"30 * * * * *", "at second 30 of every minute"},
		{"0 */5 * * * *", "every 5 minutes"},
		{"0 0/5 * * * *", "every 5 minutes"},
		{"0 2-59/5 * * * *", "every 5 minutes from minute 2 on"},
		{"0 */7 * * * *", "at minute 0, 7, 14, 21, 28, 35, 42, 49 and 56 of every hour"},
		{"*/10 0 * * * *", "every 10 seconds in minute 0 of every hour"},
		{"*/10 */5 * * * *", "every 10 seconds in minute 0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50 and 55 of every hour"},
		{"15 0,30 * * * *", "at second 15 in minute 0 and 30 of every hour"},
		{"@hourly", "every hour"},
		{"0 15 * * * *", "at minute 15 of every hour"},
		{"0 0 */2 * * *", "every 2 hours, Europe/Berlin"},
		{"0 0 1-23/2 * * *", "every 2 hours from hour 1 on, Europe/Berlin"},
		{"0 0 */6 * * *", "every day at 00:00, 06:00, 12:00 and 18:00, Europe/Berlin"},
		{"0 */5 9-17 * * 1-5", "every 5 minutes from 09:00 to 17:55 on Monday to Friday, Europe/Berlin"},
		{"0 0 9-17 * * *", "every hour from 09:00 to 17:00, Europe/Berlin"},
		{"0 15 9-17 * * *", "at minute 15 from 09:00 to 17:15, Europe/Berlin"},
		{"0 */5 1,3 * * *", "every 5 minutes in hour 1 and 3, Europe/Berlin"},
		{"0 0 1,3,5,8,9 * * *", "at hour 1, 3, 5, 8 and 9, Europe/Berlin"},
		{"@daily", "every day at 00:00, Europe/Berlin"},
		{"30 15 4 * * *", "every day at 04:15:30, Europe/Berlin"},
		{"0 0,30 4 * * *", "every day at 04:00 and 04:30, Europe/Berlin"},
		{"0 0 4 * * mon-fri", "at 04:00 on Monday to Friday, Europe/Berlin"},
		{"0 0 4 * * 0,6", "at 04:00 on Saturday and Sunday, Europe/Berlin"},
		{"@weekly", "at 00:00 on Sunday, Europe/Berlin"},
		{"@monthly", "at 00:00 on day 1 of every month, Europe/Berlin"},
		{"0 0 4 1,15 1-6,12 *", "at 04:00 on day 1 and 15 of January to June and December, Europe/Berlin"},
		{"@yearly", "at 00:00 on day 1 of January, Europe/Berlin"},
		{"0 0 0 13 * 5", "at 00:00 on day 13 of the month or on Friday, Europe/Berlin"},
		{"0 0 0 1-31 * 5", "every day at 00:00, Europe/Berlin"},
		{"0 0 0 * 7 *", "at 00:00 in July, Europe/Berlin"},
		{"0 * * * 7 5", "every minute on Friday in July, Europe/Berlin"},
		{"CRON_TZ=Asia/Tokyo @daily", "every day at 00:00, Asia/Tokyo"},
		{"@every 1s", "every second"},
		{"@every 90s", "every 90 seconds"},
		{"@every 90m", "every 90 minutes"},
		{"@every 24h", "every 24 hours"},
		{"@every 1h", "every hour"},
		{"@at 2030-07-31T12:00:00Z", "once, on 31 July 2030 at 14:00:00, Europe/Berlin"},
		{"@after 2030-07-31T12:00:00Z <P1DT2H30M", "once, on 31 July 2030 at 14:00:00, Europe/Berlin, or up to 26h30m0s later"},
		{"@after 2030-07-31T12:00:00Z PT45S", "once, on 31 July 2030 at 14:00:00, Europe/Berlin, or up to 45s later"},
		{"@manually", "never by itself"},
	} {
		zone, err := loadZone("Europe/Berlin")
		if err != nil {
			t.Fatal(err)
		}
		s, err := parseSchedule(c.spec, "Europe/Berlin", "a")
		if err != nil {
			t.Fatalf("%s: %v", c.spec, err)
		}
		if got := s.words(zone); got != c.want {
			t.Errorf("%-24s %s\n%25swant %s", c.spec, got, "", c.want)
		}
	}
}

// To check a job costs little beside storing it: 600 kB of garbage for each halved the rate of creates.
func TestJob_ValidateCost(t *testing.T) {
	j := job{Name: "a", Schedule: "@manually", Executor: executorHTTP, ExecutorConfig: map[string]string{
		"method": "GET", "url": "http://127.0.0.1/", "timeout": "30", "expectCode": "200"}}
	allocated := testing.AllocsPerRun(10, func() {
		if err := j.validate("UTC", 0); err != nil {
			t.Fatal(err)
		}
	})
	if allocated > 75 {
		t.Errorf("checking an http job made %v allocations, want at most 75", allocated)
	}
}
