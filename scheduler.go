// scheduler.go owns what a job is, when it is due, where it runs, and what follows when a run ends.
//
// Sections: the job, its JSON and its validation; the decisions, as functions of a moment; the scheduler, which runs on
// the leader only: it fires, dispatches, settles doubts, records results, trims and delivers notices; the writes that
// clients ask for; the schedules.
//
// Rules that always hold:
//
//  1. Nothing starts that apply did not accept: the leader proposes a decision, and dispatches what apply started.
//  2. What is due, the leader asks the store; in memory it keeps the executions in doubt, and what cannot be decided
//     yet. A new leader makes both from the store.
//  3. Times in commands are the leader's wall clock, read once per command.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/url"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	_ "time/tzdata" // so that every node knows the same zones
	"unicode"

	"github.com/adhocore/gronx"
	"golang.org/x/sync/errgroup"
)

const (
	nameBytesMax   = 1024    // of a job's name
	mutexBytesMax  = 256     // of the name of a job's mutex
	retriesMax     = 1 << 30 // of a job: larger than makes sense, and safe to count with
	jobBytesMax    = 512_000 // of a job's JSON
	paramsBytesMax = 4_000   // of the names and values of a run's parameters
	notifyMax      = 20      // receivers that a job names
	keepMax        = 100_000 // executions that a job keeps
	warningsMax    = 10      // of a job that are shown
	reportsMax     = 500     // in one finish command

	catchupMax    = 10                    // newest missed ticks of a job that still run
	catchupMin    = 10 * time.Second      // window in which they do: a new leader needs some seconds to find the nodes
	catchupHalf   = time.Hour             // longest window of a job that names none
	nodeFailed    = 5 * time.Second       // after which a silent node counts as failed
	answerOverdue = time.Second / 2       // after which orders without an answer make other nodes preferred
	delayMax      = 7 * 24 * time.Hour    // of a job's retry_delay and catchup
	durationMax   = 365 * 24 * time.Hour  // of its timeout
	tickSlack     = time.Second           // between looks at the clock; a gap of twice that is an outage
	doubtPause    = time.Second           // between questions about executions in doubt
	startableAge  = 24 * time.Hour        // up to which an execution may still start: nodes remember orders for as long
	firstAnswers  = time.Second / 2       // that a new leader waits for answers before it fires
	beginPause    = 50 * time.Millisecond // between tries to begin a term
	trimPause     = 5 * time.Second       // between looks for what need not be kept
	reviewPause   = time.Minute           // between looks that read whole tables
	requestsKept  = 10 * time.Minute      // for which a repeated request is recognised, at least
	futureMax     = 30 * time.Minute      // that a decided tick may be ahead of the clock; a wrong zone makes it more
	decidesMax    = 4                     // consume commands under way at once
	dispatchBytes = rpcBytesMax / 8       // of orders in one dispatch: JSON makes up to six bytes of one
	orderBytes    = 300                   // of an order, without its texts
	consumeBytes  = 1_000_000             // of the decisions in one command: less than commandBytesMax
	decisionBytes = 350                   // of a decision, without its texts and targets
	targetBytes   = 70                    // of a target, without its name
	writeTries    = 100                   // of a write whose job is being changed
	writePause    = 5 * time.Millisecond  // between them
	recordPause   = 50 * time.Millisecond // between looks for a request on record
	sliceBytes    = 256_000               // of staged jobs or recorded nodes in one command, unless one is larger
	stagedKept    = 10 * time.Minute      // after the last restore: a slow client may still read its response
	writeTimeout  = time.Minute           // for a write, even if its client has gone away
	noticeWait    = time.Second           // before the second attempt to deliver a notice; the others wait longer
	noticeWaitMax = 5 * time.Minute       // between two attempts
	failuresAge   = 7 * 24 * time.Hour    // up to which executions without success do not leave with the others
	noticeAge     = time.Hour             // up to which a notice is tried again
)

// instant is a time that may be absent: Unix nanoseconds UTC, 0 for none, which is null in JSON. It ends in 2262.
type instant int64

// MarshalJSON implements json.Marshaler.
func (i instant) MarshalJSON() ([]byte, error) {
	if i == 0 {
		return []byte("null"), nil
	}
	return timeOf(int64(i)).MarshalJSON()
}

// UnmarshalJSON reads null, RFC 3339, and RFC 3339 without seconds or zone, which is UTC: as Dkron's clients send it.
func (i *instant) UnmarshalJSON(doc []byte) error {
	var text *string
	if err := json.Unmarshal(doc, &text); err != nil {
		return badTime{errors.New(`a time must be a string as in "2030-01-31T12:00:00Z", or null`)}
	}
	*i = 0
	if text == nil {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, *text)
	if err != nil {
		t, err = time.Parse("2006-01-02T15:04", *text)
	}
	if err != nil {
		return badTime{fmt.Errorf(`%q is no time, write it as in "2030-01-31T12:00:00Z"`, *text)}
	}
	if !t.IsZero() { // as Go's clients write that there is none
		*i = instant(nanosOf(t))
	}
	return nil
}

// badTime is the error of an instant that cannot be read.
type badTime struct{ error }

// nanosOf returns t in nanoseconds, or the nearest time that nanoseconds can express.
func nanosOf(t time.Time) int64 {
	switch {
	case t.Year() < 1678:
		return math.MinInt64 + 1
	case t.Year() > 2261:
		return math.MaxInt64
	}
	return t.UnixNano()
}

// A job is the definition of what is to be done, and when, as clients write it. What happened to it is in jobRow.
type job struct {
	Name           string                       `json:"name"`
	DisplayName    string                       `json:"displayname,omitempty"`
	Schedule       string                       `json:"schedule,omitempty"`
	Timezone       string                       `json:"timezone,omitempty"` // empty: the cluster's
	Owner          string                       `json:"owner,omitempty"`
	OwnerEmail     string                       `json:"owner_email,omitempty"`
	Disabled       bool                         `json:"disabled,omitempty"`
	Tags           map[string]string            `json:"tags,omitempty"`
	Metadata       map[string]string            `json:"metadata,omitempty"`
	Retries        uint                         `json:"retries,omitempty"`
	ParentJob      string                       `json:"parent_job,omitempty"`
	ParentOn       string                       `json:"parent_on,omitempty"`     // ours, as the next two
	Params         map[string]string            `json:"params,omitempty"`        // of a run, with defaults; nil: any
	DisableAfter   uint                         `json:"disable_after,omitempty"` // failed groups in a row; 0: never
	Processors     map[string]map[string]string `json:"processors,omitempty"`
	Concurrency    string                       `json:"concurrency,omitempty"`
	Mutex          string                       `json:"mutex,omitempty"`    // ours
	Delivery       string                       `json:"delivery,omitempty"` // ours; so are the next four, durations
	RetryDelay     string                       `json:"retry_delay,omitempty"`
	RetryMaxDelay  string                       `json:"retry_max_delay,omitempty"`
	Timeout        string                       `json:"timeout,omitempty"`
	Catchup        string                       `json:"catchup,omitempty"` // how late a tick may run; empty: see window
	Executor       string                       `json:"executor,omitempty"`
	ExecutorConfig map[string]string            `json:"executor_config,omitempty"`
	Ephemeral      bool                         `json:"ephemeral,omitempty"`
	SkipOn         []string                     `json:"skip_on,omitempty"` // ours: calendars whose days it skips
	StartsAt       instant                      `json:"starts_at,omitempty"`
	ExpiresAt      instant                      `json:"expires_at,omitempty"`
	Notify         []notifyRule                 `json:"notify,omitempty"`      // ours; so are the next three
	Keep           int                          `json:"keep,omitempty"`        // executions; 0: --executions-keep
	MaxRuntime     string                       `json:"max_runtime,omitempty"` // then a run is overdue
	MaxSilence     string                       `json:"max_silence,omitempty"` // without success: the job is overdue

	// The record of a job that is created, or restored from a backup. A restore of an existing job keeps the larger
	// values, an update keeps the job's own. They are no part of the stored definition.
	SuccessCount int64   `json:"success_count,omitempty"`
	ErrorCount   int64   `json:"error_count,omitempty"`
	LastSuccess  instant `json:"last_success,omitempty"`
	LastError    instant `json:"last_error,omitempty"`
}

func (j *job) dropRecord() { j.SuccessCount, j.ErrorCount, j.LastSuccess, j.LastError = 0, 0, 0, 0 }

// Values of a job's delivery; empty is at most once. With at least once, retries follow a lost run, although it may
// have succeeded.
const (
	deliveryAtMostOnce  = "at-most-once"
	deliveryAtLeastOnce = "at-least-once"
)

// A notifyRule names a receiver of notices about a job: one of Webhook and Mail is set.
type notifyRule struct {
	On      []string `json:"on"` // events
	Webhook string   `json:"webhook,omitempty"`
	Mail    string   `json:"mail,omitempty"`
	Every   bool     `json:"every,omitempty"` // tells of every failure, not only of the first until it has recovered
}

// Dkron Pro's processors that become notices.
const (
	processorSlack = "slack"
	processorEmail = "email"
)

// receivers returns the job's own receivers of an event; again as in applying.receivers.
func (j *job) receivers(event string, again bool) (list []string) {
	for _, r := range j.Notify {
		switch {
		case !slices.Contains(r.On, event) || again && !r.Every:
		case r.Mail != "":
			list = append(list, receiverMail+r.Mail)
		default:
			list = append(list, receiverURL+r.Webhook)
		}
	}
	for name, settings := range j.Processors {
		on := map[bool]string{false: eventFailed, true: eventEnd}[settings["onSuccess"] == "true"]
		if name == processorSlack && event == on {
			list = append(list, receiverSlack+settings["team"]+" "+settings["channel"])
		}
		if name == processorEmail && event == on {
			for address := range strings.SplitSeq(settings["emails"], ",") {
				list = append(list, receiverOwner+strings.TrimSpace(address))
			}
		}
	}
	return list
}

// checkNotify refuses receivers that cannot be told.
func (j *job) checkNotify(mail *mailConfig) error {
	if len(j.Notify) > notifyMax {
		return fmt.Errorf("notify: has more than %d entries", notifyMax)
	}
	for i, r := range j.Notify {
		field, err := "on", checkEvents(r.On, jobEvents)
		switch {
		case err != nil:
		case len(r.On) == 0:
			err = errors.New("name some of " + strings.Join(jobEvents, ", "))
		case r.Mail != "" && r.Webhook != "":
			field, err = "webhook", errors.New("must not stand beside mail; write two entries")
		case r.Mail != "":
			field, err = "mail", mail.checkAddress(r.Mail)
		default:
			field, err = "webhook", checkReceiverURL(r.Webhook)
		}
		if err != nil {
			return fmt.Errorf("notify[%d].%s: %w", i, field, err)
		}
	}
	return nil
}

// decodeJob reads a job as clients send it, over the values in j. Null is ignored, as upstream, and so are unknown
// fields, but for those that are almost one of a job's. The error is one sentence that names the field.
func decodeJob(doc []byte, j job) (job, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	err := d.Decode(&j)
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, new(badTime)):
		return job{}, fmt.Errorf("starts_at, expires_at, last_success, last_error: %w", err)
	case errors.As(err, &typ) && typ.Field != "":
		return job{}, typeError(doc, typ)
	case errors.As(err, &typ):
		return job{}, fmt.Errorf("a job must be a JSON object, not a JSON %s", typ.Value)
	case err == io.EOF:
		return job{}, errors.New("the body is empty")
	case err != nil:
		return job{}, fmt.Errorf("the body is no job: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return job{}, errors.New("the body must hold one JSON object and nothing after it")
	}
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(doc, &fields) // it is an object
	for _, key := range sortedKeys(fields) {
		if meant := misspelled(strings.ToLower(key), jobKeys); meant != "" {
			return job{}, fmt.Errorf("%.40s: a job has no such field; write %q", key, meant)
		}
	}
	err = j.checkTimes()
	return j, err
}

// jobKeys are the fields of a job as clients send and see it.
var jobKeys = func() (list []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[jobView]()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			list = append(list, name)
		}
	}
	return list
}()

// misfit returns the first value in v that has the wrong type, and its path from at. v must be a JSON value of maps
// nested to that depth, with strings in the innermost. The path is "" if all types are right.
func misfit(v any, at string, depth int) (string, any) {
	m, ok := v.(map[string]any)
	if _, text := v.(string); v == nil || depth == 0 && text {
		return "", nil
	}
	if depth == 0 || !ok {
		return at, v
	}
	for _, k := range sortedKeys(m) {
		if p, v := misfit(m[k], at+"."+k, depth-1); p != "" {
			return p, v
		}
	}
	return "", nil
}

// typeError names the field with the wrong type, and what to write where a string is required.
func typeError(doc []byte, err *json.UnmarshalTypeError) error {
	field, _, _ := strings.Cut(err.Field, ".")
	depth := map[string]int{"tags": 1, "metadata": 1, "executor_config": 1, "params": 1, "processors": 2}[field]
	at, kind, advice := cmp.Or(err.Field, "the body"), err.Value, ""
	var fields map[string]any
	if depth > 0 && json.Unmarshal(doc, &fields) == nil {
		if path, v := misfit(fields[field], field, depth); path != "" {
			at = fmt.Sprintf("%.80s", path)
			kind = map[reflect.Kind]string{reflect.Bool: "bool", reflect.Float64: "number", reflect.Slice: "array",
				reflect.Map: "object", reflect.String: "string"}[reflect.TypeOf(v).Kind()]
			advice = map[string]string{"bool": fmt.Sprintf(`; write "%v"`, v), "number": "; write it in quotes"}[kind]
		}
	}
	return fmt.Errorf("%s: a JSON %s does not fit here%s", at, kind, advice)
}

// checkTimes refuses times that nanoseconds cannot express. An expires_at after those is none.
func (j *job) checkTimes() error {
	if j.ExpiresAt == math.MaxInt64 {
		j.ExpiresAt = 0
	}
	times := map[string]instant{"starts_at": j.StartsAt, "expires_at": j.ExpiresAt}
	for _, field := range sortedKeys(times) {
		if at := times[field]; at == math.MinInt64+1 || at == math.MaxInt64 {
			return fmt.Errorf("%s: must lie in the years 1678 to 2261, or be null", field)
		}
	}
	return nil
}

// validate checks what can be checked without looking at other jobs. zone is the cluster's, now the leader's clock. The
// error has a clause for all that is wrong, which names the field.
func (j *job) validate(zone string, now int64) error {
	var list []string
	check := func(field string, err error) {
		if err != nil {
			list = append(list, field+err.Error())
		}
	}
	refuse := func(wrong bool, format string, args ...any) {
		if wrong {
			list = append(list, fmt.Sprintf(format, args...))
		}
	}
	oneOf := func(field, value string, words ...string) {
		last := len(words) - 1
		refuse(value != "" && !slices.Contains(words, value), `%s: %q must be "%s" or %q`,
			field, value, strings.Join(words[:last], `", "`), words[last])
	}
	check("", validateName(j.Name))
	oneOf("concurrency", j.Concurrency, concurrencyAllow, concurrencyForbid, concurrencyQueue, concurrencyReplace)
	refuse(len(j.Mutex) > mutexBytesMax || strings.ContainsFunc(j.Mutex, unicode.IsControl),
		"mutex: must be a text of at most %d bytes, without control characters", mutexBytesMax)
	oneOf("delivery", j.Delivery, deliveryAtMostOnce, deliveryAtLeastOnce)
	refuse(j.Keep < 0 || j.Keep > keepMax, "keep: must be a number of executions from 1 to %d", keepMax)
	refuse(j.Retries > retriesMax, "retries: %d is more than %d", j.Retries, retriesMax)
	oneOf("parent_on", j.ParentOn, onSuccess, onFailure, onAny)
	refuse(j.ParentOn != "" && j.ParentJob == "", "parent_on: says when a job follows its parent_job, which is missing")
	refuse(j.DisableAfter > retriesMax, "disable_after: %d is more than %d", j.DisableAfter, retriesMax)
	check("", checkParams(j.Params))
	refuse(len(j.SkipOn) > rulesMax, "skip_on: %d calendars are more than %d", len(j.SkipOn), rulesMax)
	refuse(j.ParentJob != "" && j.ParentJob == j.Name, "parent_job: a job cannot be its own parent")
	refuse(j.SuccessCount < 0 || j.ErrorCount < 0, "success_count, error_count: must not be negative")
	refuse(j.LastSuccess < 0 || j.LastError < 0 || int64(max(j.LastSuccess, j.LastError)) > now,
		"last_success, last_error: must lie between 1970 and now, or be null")
	for _, d := range []struct {
		field, text string
		low, high   time.Duration
	}{
		{"retry_delay", j.RetryDelay, time.Second, delayMax},
		{"retry_max_delay", j.RetryMaxDelay, min(delayMax, retryDelay(j.RetryDelay, "", 1)), delayMax},
		{"timeout", j.Timeout, time.Millisecond, durationMax},
		{"max_runtime", j.MaxRuntime, time.Second, durationMax},
		{"max_silence", j.MaxSilence, time.Second, durationMax},
		{"catchup", j.Catchup, catchupMin, delayMax}, // ticks within it are decided one by one
	} {
		if d.text == "" {
			continue
		}
		got, err := time.ParseDuration(d.text)
		refuse(err != nil || got < d.low || got > d.high,
			`%s: %q must be a duration from "%s" to "%s", such as "90s" or "1h30m"`, d.field, d.text, d.low, d.high)
	}
	for _, k := range sortedKeys(j.Tags) {
		_, n, ok := cutCount(j.Tags[k])
		refuse(ok && n < 1, "tags.%s: %q ends in a number of nodes below 1, on which nothing would run; "+
			"write 1 or more, or leave the number out", k, j.Tags[k])
	}
	check("", checkHidden("executor_config", j.ExecutorConfig))
	check("", j.checkConfigKeys())
	switch j.Executor {
	case executorShell:
		check("", checkShellConfig(j.ExecutorConfig))
	case executorHTTP:
		check("", checkHTTPConfig(j.ExecutorConfig))
	}
	if _, err := loadZone(j.zone(zone)); err != nil {
		check("timezone: ", err)
		zone, j = "UTC", &job{Name: j.Name, Schedule: j.Schedule, ParentJob: j.ParentJob}
	}
	if j.Schedule != "" || j.ParentJob == "" {
		_, err := parseSchedule(j.Schedule, j.zone(zone), j.Name)
		check("schedule: ", err)
	}
	if list == nil {
		return nil
	}
	return errors.New(strings.Join(list, "; "))
}

// validate is job.validate with what this server's flags allow.
func (s *scheduler) validate(j *job, now int64) error {
	return both(j.validate(s.timezone(), now), j.checkNotify(&s.courier.config().Mail))
}

// both returns two errors as clauses of one, or the one that there is.
func both(a, b error) error {
	if a != nil && b != nil {
		return fmt.Errorf("%w; %w", a, b)
	}
	return cmp.Or(a, b)
}

// validateName allows lower case letters of any script, digits, underscore and dash, as upstream.
func validateName(name string) error {
	if name == "" {
		return errors.New("name: must not be empty")
	}
	if len(name) > nameBytesMax {
		return fmt.Errorf("name: must not be longer than %d bytes", nameBytesMax)
	}
	for _, r := range name {
		if !unicode.IsLower(r) && !unicode.IsDigit(r) && r != '_' && r != '-' {
			const allowed = "only lower case letters, digits, underscore and dash are allowed"
			return fmt.Errorf("name: %q holds %q; %s", name, r, allowed)
		}
	}
	return nil
}

// checkParams refuses parameters that cannot become variables of an environment and headers.
func checkParams(params map[string]string) error {
	size, seen := 0, map[string]bool{}
	for _, k := range sortedKeys(params) {
		name := strings.ToUpper(k)
		switch {
		case strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" || name == "":
			return fmt.Errorf("params: the name %.40q must consist of letters, digits and _", k)
		case seen[name]:
			return fmt.Errorf("params: two names are the same but for their case, as is %.40q", k)
		case strings.ContainsFunc(params[k], unicode.IsControl):
			return fmt.Errorf("params.%.40s: must not contain control characters", k)
		}
		seen[name] = true
		size += len(k) + len(params[k])
	}
	if size > paramsBytesMax {
		return fmt.Errorf("params: %d bytes of names and values are more than %d", size, paramsBytesMax)
	}
	return checkHidden("params", params)
}

// runParams are the parameters of a run: those that it was given, and the job's defaults.
func (j *job) runParams(given map[string]string) map[string]string {
	if j.Params == nil {
		return given
	}
	params := maps.Clone(j.Params)
	maps.Copy(params, given)
	return params
}

// checkShellConfig refuses an executor_config of a shell job that means something else than its author intended, or can
// never run. Other mistakes show when it runs, as in Dkron. Values that may be secret are not quoted.
func checkShellConfig(config map[string]string) error {
	if _, _, _, err := parseLimits(config); err != nil {
		return err
	}
	tooLong := func(text string) bool { return len(text) > argumentBytesMax }
	entries := envEntries(config)
	if slices.ContainsFunc(entries, func(entry string) bool { return strings.IndexByte(entry, '=') < 1 }) {
		return errors.New(`executor_config.env: an entry has no name; write entries as NAME=value, ` +
			`and \, for a comma in a value`)
	}
	if slices.ContainsFunc(entries, tooLong) {
		return fmt.Errorf("executor_config.env: an entry is longer than the %d bytes that the kernel takes; "+
			"pass it with payload", argumentBytesMax)
	}
	words, _ := commandWords(config)
	if slices.ContainsFunc(words, tooLong) {
		return fmt.Errorf("executor_config.command: an argument is longer than the %d bytes that the kernel takes; "+
			"pass a long script with payload, to a shell as the command", argumentBytesMax)
	}
	return nil
}

// checkHTTPConfig refuses an executor_config of an http job that means something else than its author intended, or can
// never succeed. Other mistakes show when it runs, as in Dkron, where a timeout without a digit is the default too.
func checkHTTPConfig(config map[string]string) error {
	timeout := config["timeout"]
	if n, err := strconv.Atoi(timeout); (err != nil || n < 1) && strings.ContainsAny(timeout, "0123456789") {
		return fmt.Errorf(`executor_config.timeout: %q is not a whole number of seconds such as "30"`, timeout)
	}
	for s := range strings.SplitSeq(config["expectCode"], ",") {
		s = strings.TrimSpace(s)
		if n, err := strconv.Atoi(s); s != "" && (err != nil || n < 100 || n > 999) {
			const text = `executor_config.expectCode: %q is not a list of status codes such as "200,204"`
			return fmt.Errorf(text, config["expectCode"])
		}
	}
	if _, err := url.Parse(config["url"]); err != nil && strings.Contains(config["url"], "@") {
		return errURL // it may hold a password, which is hidden only in a URL that can be parsed
	}
	if _, err := requestHeaders(config); err == errHeader {
		return err
	}
	_, err := bodyPattern(config["expectBody"])
	return err
}

// configKeys are what each executor reads of executor_config.
var configKeys = map[string][]string{
	executorShell: {"command", "shell", "env", "cwd", "timeout", "kill_timeout", "mem_limit", "payload", "su"},
	executorHTTP: {"method", "url", "headers", "body", "timeout", "expectCode", "expectBody", "debug",
		"tlsNoVerifyPeer", "tlsCertificateFile", "tlsCertificateKeyFile", "tlsRootCAsFile"},
}

// checkConfigKeys refuses a key that is probably a misspelling of one that the executor reads.
func (j *job) checkConfigKeys() error {
	for _, key := range sortedKeys(j.ExecutorConfig) {
		if meant := misspelled(key, configKeys[j.Executor]); meant != "" {
			const text = "executor_config.%.40s: the executor %s reads no such key; write %q"
			return fmt.Errorf(text, key, j.Executor, meant)
		}
	}
	return nil
}

// withoutDashes leaves out what people write in different ways.
var withoutDashes = strings.NewReplacer("_", "", "-", "")

// misspelled returns the known word that an unknown one is probably meant to be, "" if there is none.
func misspelled(word string, known []string) string {
	if slices.Contains(known, word) {
		return ""
	}
	for _, k := range known {
		a, b := strings.ToLower(withoutDashes.Replace(word)), strings.ToLower(withoutDashes.Replace(k))
		if a == b || editDistance(a, b) <= min(2, len(word)-3, len(k)-3) {
			return k
		}
	}
	return ""
}

// editDistance returns how many bytes must be added, removed or replaced to turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1) // distances of the part of a so far to the prefixes of b
	for i := range row {
		row[i] = i
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for k := range len(b) {
			replaced := before
			if a[i] != b[k] {
				replaced++
			}
			before, row[k+1] = row[k+1], min(row[k]+1, row[k+1]+1, replaced)
		}
	}
	return row[len(b)]
}

// warning says in ASCII which settings of a job are stored but have no effect, "" if all have.
func (j *job) warning(c *courier) string {
	var list []string
	add := func(field, key, what string) {
		if key = strings.Trim(strconv.QuoteToASCII(key), `"`); len(list) < warningsMax {
			list = append(list, fmt.Sprintf("%s.%.40s: %s.", field, key, what))
		}
	}
	known := configKeys[j.Executor]
	if known == nil && j.Executor != "" {
		list = append(list, fmt.Sprintf("executor: no node has %+q; every run fails.", j.Executor))
	}
	for _, key := range sortedKeys(j.ExecutorConfig) {
		if known != nil && !slices.Contains(known, key) {
			add("executor_config", key, "the executor "+j.Executor+" reads no such key")
		}
	}
	to := c.config()
	if err := to.Mail.checkAddress(j.OwnerEmail); err != nil && j.OwnerEmail != "" && to.Mail.Host != "" {
		list = append(list, fmt.Sprintf("owner_email: %+q; no mail goes there.", err.Error()))
	}
	for _, name := range sortedKeys(j.Processors) {
		switch settings := j.Processors[name]; name {
		case "log", "syslog":
		case "files":
			if _, ok := outputPattern(settings); !ok {
				add("processors", name,
					"log_dir and file_name must name a file below a node's --files-dir; nothing is written")
			}
		case processorSlack:
			if to.Slack[settings["team"]] == "" {
				add("processors", name, "the servers have no --slack-webhook for its team; nobody is told")
			}
		case processorEmail:
			for address := range strings.SplitSeq(settings["emails"], ",") {
				if to.Mail.checkAddress(strings.TrimSpace(address)) != nil {
					add("processors", name, "mail goes only to addresses in --mail-domains of the servers")
				}
			}
		default:
			add("processors", name, "no node has it; the output stays as it is")
		}
	}
	return strings.Join(list, " ")
}

// zone returns the zone of the job's schedule. Local means the cluster's: a job must not move with the leader.
func (j *job) zone(cluster string) string {
	if j.Timezone == "" || j.Timezone == "Local" {
		return cluster
	}
	return j.Timezone
}

// schedule returns the parsed schedule. It was validated, but perhaps by a version with other zones: an invalid one
// never fires.
func (j *job) schedule(zone string) schedule {
	s, _ := parseSchedule(j.Schedule, j.zone(zone), j.Name)
	return s
}

// armed reports whether the scheduler fires the job at its next tick.
func (j *job) armed() bool { return !j.Disabled && j.ParentJob == "" }

// firstTick returns the first tick after both now and fired; that of @after may lie before now. For a job that the
// scheduler does not fire it is what to show as next, as upstream: the start of its window if that is in the future,
// 1970 for a child without a schedule.
func (j *job) firstTick(zone string, now, fired int64) int64 {
	s, start := j.schedule(zone), time.Time{}
	after := timeOf(max(now-int64(s.window), fired))
	if j.StartsAt != 0 {
		start = timeOf(int64(j.StartsAt))
	}
	switch {
	case j.armed():
		return j.within(s.first(after, start))
	case j.Schedule == "":
		return 0
	case s != (schedule{}) && start.After(after):
		return nanosOf(start)
	}
	return j.within(s.next(after))
}

// within returns t in nanoseconds, or never if it is after the job's window, or after what nanoseconds can express.
func (j *job) within(t time.Time) int64 {
	if t.IsZero() || nanosOf(t) == math.MaxInt64 || j.ExpiresAt != 0 && nanosOf(t) > int64(j.ExpiresAt) {
		return never
	}
	return nanosOf(t)
}

// cutCount splits a tag's value such as "web:2" into the value and the count.
func cutCount(value string) (rest string, count int, ok bool) {
	i := strings.LastIndexByte(value, ':')
	count, err := strconv.Atoi(value[i+1:])
	if i < 0 || err != nil {
		return value, 0, false
	}
	return value[:i], count, true
}

// nodesWanted returns how many nodes a job with these tags runs on at most.
func nodesWanted(tags map[string]string) int {
	limit := math.MaxInt
	for _, value := range tags {
		if _, n, ok := cutCount(value); ok {
			limit = min(limit, max(0, n))
		}
	}
	return limit
}

// matchingNodes returns the nodes that have all the tags, whatever the counts.
func matchingNodes(tags map[string]string, nodes []node) (matching []node) {
next:
	for _, n := range nodes {
		for k, value := range tags {
			wanted, _, _ := cutCount(value)
			if got, ok := n.Tags[k]; !ok || got != wanted {
				continue next
			}
		}
		matching = append(matching, n)
	}
	return matching
}

// moment is what the leader knows when it decides.
type moment struct {
	now          int64
	since        int64         // start of the time in which it has led and been awake without a gap
	catchup      time.Duration // age up to which a tick still runs
	lostAfter    time.Duration // how long a pending retry waits for a node
	zone         string        // the cluster's
	nodes        []node        // alive, by name
	unresponsive []node        // alive, but they did not answer their last orders
	expected     []node        // on record, but not seen yet
	startable    int64         // no execution with a lower id is started any more
	released     int64         // when a hold was released last, in this term
	rules        rules
	rnd          *rand.Rand
	picked       map[string]int // node → how often a count chose it
	running      map[string]int // node → its unfinished executions, if any node has a limit
}

// room returns how many executions more a node takes.
func (m moment) room(n node) int {
	if n.limit() == 0 {
		return math.MaxInt
	}
	return max(0, n.limit()-m.running[n.Name]-m.picked[n.Name])
}

// limits returns the limits that those of the targets have which have one.
func (m moment) limits(targets []target) map[string]int {
	all, limits := map[string]int{}, map[string]int{}
	for _, n := range m.nodes {
		all[n.Name] = n.limit()
	}
	for _, t := range targets {
		if all[t.Node] > 0 {
			limits[t.Node] = all[t.Node]
		}
	}
	return limits
}

// withRand returns m for a goroutine that owns rnd.
func (m moment) withRand(rnd *rand.Rand) moment {
	m.rnd, m.picked = rnd, map[string]int{}
	return m
}

// settled reports whether the leader has led for long enough to say that a node which it does not see is not there.
func (m moment) settled() bool { return m.now-m.since > int64(nodeFailed) }

// byPreference sorts nodes: those that are overdue last, those with the most room first, then by how often a count has
// chosen them, then by chance.
func (m moment) byPreference(nodes []node) {
	m.rnd.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	overdue := map[bool]int{true: 1}
	slices.SortStableFunc(nodes, func(a, b node) int {
		return cmp.Or(overdue[a.Overdue]-overdue[b.Overdue], cmp.Compare(m.room(b), m.room(a)),
			cmp.Compare(m.picked[a.Name], m.picked[b.Name]))
	})
}

// pick returns the nodes that run a job with these tags, by name. All tags must match. A value that ends in ":N" limits
// how many of the matching nodes are taken; the lowest limit counts. Without tags it is every node.
func (m moment) pick(tags map[string]string) (picked []target) {
	matching := matchingNodes(tags, m.nodes)
	if limit := nodesWanted(tags); limit < len(matching) {
		m.byPreference(matching)
		matching = matching[:limit]
		slices.SortFunc(matching, func(a, b node) int { return cmp.Compare(a.Name, b.Name) })
		for _, n := range matching {
			m.picked[n.Name]++
		}
	}
	for _, n := range matching {
		picked = append(picked, n.target())
	}
	return picked
}

// elsewhere returns a process for a run of a job that cannot run where it was to: on another matching node, none of
// used, if a count leaves a choice; else on the node of that name. ok is false if there is none.
func (m moment) elsewhere(tags map[string]string, name string, used []string) (to target, ok bool) {
	matching := matchingNodes(tags, m.nodes)
	m.byPreference(matching)
	for _, n := range matching {
		if nodesWanted(tags) < math.MaxInt && n.Name != name && !slices.Contains(used, n.Name) && m.room(n) > 0 {
			return n.target(), true
		}
		if n.Name == name {
			to, ok = n.target(), true
		}
	}
	return to, ok
}

// choose returns the nodes that run a tick of a job with these tags. ok is false if the tick must wait: nodes that a
// new leader has on record, or those that did not answer, may be back soon.
func (m moment) choose(tags map[string]string, due int64) (targets []target, ok bool) {
	targets = m.pick(tags)
	switch {
	case !m.settled():
		return targets, len(targets) > 0 && !m.lacks(tags, targets)
	case len(targets) == 0:
		return nil, len(matchingNodes(tags, m.unresponsive)) == 0 || m.now-due >= int64(m.catchup)
	}
	return targets, true
}

// lacks reports whether a node on record, which a new leader has not seen yet, would be among the targets.
func (m moment) lacks(tags map[string]string, targets []target) bool {
	return !m.settled() && len(targets) < nodesWanted(tags) && len(matchingNodes(tags, m.expected)) > 0
}

// plan decides every tick of a job up to now, oldest first; each decision also has the tick that follows. overlap is
// why concurrency forbids a run, "" if it does not. Without decisions the job must be looked at again later.
func (m moment) plan(r *jobRow, overlap string) []decision {
	targets, ok := m.choose(r.Tags, r.next)
	if !ok {
		return nil
	}
	newest := catchupMax
	if r.Concurrency != "" && r.Concurrency != concurrencyAllow {
		newest = 1
	}
	list, due := m.missed(r, newest)
	for _, t := range due {
		d := decision{Due: t, Late: t < m.since}
		barred := cmp.Or(m.closed(r, timeOf(t)), m.rules.held(r.Metadata))
		switch {
		case barred != "":
			d.Outcome, d.Reason = outcomeSkipped, barred
		case overlap != "":
			d.Outcome, d.Reason, d.Event = outcomeSkipped, overlap, eventOverrun
		case len(targets) == 0:
			d.Outcome, d.Reason, d.Event = outcomeSkipped, m.noNode(), eventMissed
		default:
			d.Targets = targets
		}
		list = append(list, d)
	}
	s := r.schedule(m.zone)
	for i, d := range list {
		list[i].Job, list[i].Rev = r.version.ID, r.version.Rev
		list[i].Next = r.within(s.next(timeOf(max(d.Due, d.Until))))
	}
	return list
}

// noNodeReason is why a job does not run if no member has its tags.
const noNodeReason = "no node has the tags that the job asks for"

func (m moment) noNode() string {
	if len(m.rules[ruleDrain]) > 0 {
		return noNodeReason + " and is not drained"
	}
	return noNodeReason
}

// closed returns which calendar of the job has the day of a tick, "" if none has.
func (m moment) closed(r *jobRow, tick time.Time) string {
	for _, name := range r.SkipOn {
		days := m.rules[ruleCalendar][name]
		zone, err := loadZone(cmp.Or(days.Timezone, m.zone))
		if err == nil && slices.Contains(days.Dates, tick.In(zone).Format(time.DateOnly)) {
			return "calendar " + name
		}
	}
	return ""
}

// window returns how long after its due time a tick of a job may still run: what the job says; else until half of the
// time to the next tick has passed, at most catchupHalf and at least the leader's own window; that of @at for ever.
func (m moment) window(j *job, due int64) time.Duration {
	s := j.schedule(m.zone)
	after := s.next(timeOf(due))
	own, err := time.ParseDuration(j.Catchup)
	switch {
	case err == nil:
		return own
	case s.once():
		return cmp.Or(s.window, math.MaxInt64)
	case after.IsZero():
		return max(m.catchup, catchupHalf)
	}
	return max(m.catchup, min(catchupHalf, after.Sub(timeOf(due))/2))
}

// missed splits the ticks of a job up to now: those too old to run, as at most one decision; those that give way to
// newer ones, as another; and the due times of the newest, which run.
func (m moment) missed(r *jobRow, newest int) (list []decision, due []int64) {
	s, next, shortest := r.schedule(m.zone), r.next, m.catchup
	if own, err := time.ParseDuration(r.Catchup); err == nil {
		shortest = own
	}
	before := func(horizon int64) (n, last int64) { // the ticks from next on, and the last of them
		if horizon <= next {
			return 0, 0
		}
		n, t := s.count(timeOf(next), timeOf(min(horizon-1, r.end())))
		if n == 0 {
			return 1, next
		}
		return n + 1, nanosOf(t)
	}
	if n, last := before(m.now - int64(shortest)); n > 0 {
		window := m.window(&r.job, last)
		if m.now-last <= int64(window) { // longer than the shortest, as no tick has followed
			n, last = before(last)
		}
		if n > 0 {
			list = append(list, decision{Due: next, Until: last, Count: n, Outcome: outcomeMissed, Event: eventMissed,
				Reason: m.outage(next, window)})
			next = r.within(s.next(timeOf(last)))
		}
	}
	var older decision
	for ; next != never && next <= m.now; next = r.within(s.next(timeOf(next))) {
		due = append(due, next)
		if len(due) <= newest {
			continue
		}
		if older.Count == 0 {
			older = decision{Due: due[0], Outcome: outcomeSkipped, Event: eventMissed,
				Reason: fmt.Sprintf("later ticks were due at the same time, and only the newest %d run", newest)}
			if due[0] < m.since {
				older.Outcome = outcomeMissed
				older.Reason = fmt.Sprintf("%s, and only the newest %d run", m.outage(due[0], 0), newest)
			}
		}
		older.Until, older.Count = due[0], older.Count+1
		due = due[1:]
	}
	if older.Count > 0 {
		list = append(list, older)
	}
	return list, due
}

// end returns the end of the job's window.
func (j *job) end() int64 { return cmp.Or(int64(j.ExpiresAt), math.MaxInt64) }

// outage says why ticks since a time were missed.
func (m moment) outage(from int64, window time.Duration) string {
	if from >= m.since {
		return fmt.Sprintf("the leader was more than %s behind", window)
	}
	return fmt.Sprintf("no leader until %s", timeOf(m.since).Format(time.RFC3339))
}

// planPending decides a pending row of job r: a retry goes to its node, or to one that its group has not used; a child
// goes to the nodes that its tags choose. ok is false if the row must wait.
func (m moment) planPending(p pendingRow, r *jobRow, used []string) (d decision, ok bool) {
	d = decision{Pending: p.ID, Job: p.JobID, Rev: r.version.Rev, Force: p.Forced}
	from := max(p.Due, m.since, m.released)
	switch early := p.Due - m.now; {
	case p.WaitsFor != "":
		begun := max(p.Asked, m.released)
		if p.Group != 0 {
			begun = max(p.Due, m.released)
		}
		d.Last = p.WaitsFor != ownGroup(p.JobID) && m.now-begun > int64(m.window(&r.job, begun))
	case p.Cause == causeRetry && early > 0 && early <= int64(retryDelay(r.RetryDelay, r.RetryMaxDelay, p.Attempt-1)):
		return d, false
	case early > 0: // the clock that computed it was ahead
		from = m.since
	}
	waited := m.now-from > int64(m.lostAfter)
	switch {
	case p.Cause == causeChildren:
	case r.Disabled && !p.Forced:
		d.Outcome, d.Reason = outcomeSkipped, "the job is disabled"
	case p.Group != 0:
		if i := slices.IndexFunc(m.nodes, func(n node) bool { return n.Name == p.Node }); i >= 0 {
			d.Targets = []target{m.nodes[i].target()}
		} else if to, ok := m.elsewhere(r.Tags, p.Node, used); ok && m.settled() {
			d.Targets = []target{to}
		} else if waited {
			d.Outcome = outcomeMissed
			d.Reason = fmt.Sprintf("the %s waited %s for node %s", p.Cause, m.lostAfter, p.Node)
		}
	case p.Cause == causeChild && m.now > r.end():
		d.Outcome, d.Reason = outcomeSkipped, "the job's expires_at has passed"
	default:
		targets := m.pick(r.Tags)
		if m.lacks(r.Tags, targets) {
			return d, false
		}
		if d.Targets = targets; len(targets) == 0 && waited {
			d.Outcome, d.Event = outcomeMissed, eventMissed
			d.Reason = fmt.Sprintf("waited %s, and %s", m.lostAfter, m.noNode())
		}
	}
	return d, p.Cause == causeChildren || len(d.Targets) > 0 || d.Outcome != ""
}

// resolve decides an execution in doubt by the answer of its node; r is its job, nil if it was deleted. If the node
// runs it or holds its result, nothing is to be done. If the process that it was given to does not know it, it never
// started: again tells to order it once more, unless it is too late for that. If that process is gone, the execution
// may have begun: it is interrupted, and retries may follow.
func (m moment) resolve(e executionRow, a answer, known map[int64]bool, r *jobRow) (closed report, again bool) {
	switch {
	case known[e.ID]:
	case a.Incarnation != e.incarnation:
		const why = "interrupted: the belfry process on %s that it was given to has ended\n"
		closed = m.closing(e, outcomeInterrupted, why, e.Node)
	case r == nil:
		closed = m.closing(e, outcomeInterrupted, "interrupted: the job was deleted before the run began\n")
	case e.ID < m.startable, e.Cause == causeTick && m.now-e.Due > int64(m.window(&r.job, e.Due)):
		closed = m.closing(e, outcomeMissed, "missed: the order did not reach %s in time\n", e.Node)
	default:
		again = true
	}
	return closed, again
}

// closing ends an execution on the leader's word; apply refuses it if another process has got the execution by then.
func (m moment) closing(e executionRow, outcome, why string, args ...any) report {
	output := fmt.Appendf(nil, why, args...)
	return report{Closed: true, result: result{Execution: e.ID, Incarnation: e.incarnation, Finished: m.now,
		Outcome: outcome, Reason: len(output), Output: output}}
}

const (
	comingMax  = 1_000  // ticks in one response
	comingJobs = 10_000 // jobs that are looked at for them, those whose schedule fires first
)

// comingTick is a tick of a job that will fall due.
type comingTick struct {
	Job string    `json:"job_name"`
	Due time.Time `json:"due"`

	job      job
	schedule schedule
}

// coming returns at most limit ticks that will fall due in [from, to) if nothing changes, the earliest first, of all
// jobs, or of those that globs match if these are not nil: of each job its first tick in that time, and then the later
// ones. more reports that there are others.
func (s *scheduler) coming(from, to time.Time, globs []string, limit int) (list []comingTick, more bool, err error) {
	zone, jobs, looked := s.timezone(), comingJobs, 0
	if !from.After(s.now()) {
		jobs = limit // the first tick of each is the one by which they are ordered
	}
	byDue := func(a, b *comingTick) int { return a.Due.Compare(b.Due) }
	next := []*comingTick{} // of each job
	err = s.store.clients.dueJobs(nanosOf(to), globs, jobs+1, func(j job, due int64) {
		t := comingTick{Job: j.Name, job: j, schedule: j.schedule(zone)}
		if due < nanosOf(from) {
			after := from.Add(-1)
			if every := t.schedule.seconds; every > 0 { // its ticks count from each other
				n, _ := t.schedule.count(timeOf(due), after)
				after = timeOf(due).Add(time.Duration(n*every) * time.Second)
			}
			due = j.within(t.schedule.next(after))
		}
		if looked++; looked <= jobs && due != never && due < nanosOf(to) {
			t.Due = timeOf(due)
			next = append(next, &t)
		}
	})
	slices.SortStableFunc(next, byDue)
	list = []comingTick{}
	for _, t := range next[:min(limit, len(next))] {
		list = append(list, *t)
	}
	more = looked > jobs || len(next) > limit
	for len(next) > 0 && (len(list) < limit || !more) {
		t := next[0]
		next = next[1:]
		switch at := t.job.within(t.schedule.next(t.Due)); {
		case at == never || at >= nanosOf(to):
		case len(list) == limit:
			more = true
		default:
			t.Due = timeOf(at)
			list = append(list, *t)
			place, _ := slices.BinarySearchFunc(next, t, byDue)
			next = slices.Insert(next, place, t)
		}
	}
	slices.SortStableFunc(list, func(a, b comingTick) int { return byDue(&a, &b) })
	return list, more, err
}

// comingMarks calls fn for the jobs whose schedule fires next before to, the earliest first, at most limit: with the
// first tick of each span of width up to then in which one falls due, and how many do.
func (s *scheduler) comingMarks(to time.Time, width time.Duration, globs []string, limit int,
	fn func(name string, marks []comingMark)) error {
	zone := s.timezone()
	return s.store.clients.dueJobs(nanosOf(to), globs, limit, func(j job, due int64) {
		marks := []comingMark{}
		for sched := j.schedule(zone); due != never && due < nanosOf(to); {
			t := timeOf(due)
			end := min(nanosOf(t.Truncate(width).Add(width))-1, nanosOf(to)-1, j.end())
			n, last := sched.count(t, timeOf(end))
			marks = append(marks, comingMark{t, n + 1})
			if n > 0 {
				t = last
			}
			due = j.within(sched.next(t))
		}
		fn(j.Name, marks)
	})
}

// A comingMark is the first of some ticks that fall due one after another.
type comingMark struct {
	Due   time.Time `json:"due"`
	Count int64     `json:"count"`
}

// schedulerConfig is what an operator may choose.
type schedulerConfig struct {
	Catchup        time.Duration       // age up to which a missed tick still runs
	FailuresKept   int                 // and beyond those the newest without success, up to failuresAge old
	ExecutionsKept int                 // newest finished executions of a job that are kept
	AuditKept      time.Duration       // age up to which the audit trail is kept
	AuditKeptBytes int64               // size up to which the audit trail is kept
	Timezone       string              // of a new cluster
	LostAfter      time.Duration       // sum of the unanswered questions about an execution after which it is lost
	Listeners      map[string][]string // the operator's receivers of each event; jobs may name others
}

// A replicator is what the scheduler asks of the cluster: *cluster.
type replicator interface {
	propose(context.Context, *command) (applied, error)
	nodes() []node                               // alive, by name
	start(node string, d dispatch) error         // gives a node its orders
	ask(node string, q question) (answer, error) // asks a node what became of executions
	end(node string, k kill) error               // tells a node to end an execution
	left(node string) bool                       // it has stopped, and not failed
	conditions() map[string]string               // event of the cluster → what is wrong, "": nothing
}

// scheduler is the leader's side of a server. Its writing methods may be called at any time by any goroutine; without
// leadership they return errNotLeader.
type scheduler struct {
	cfg     schedulerConfig
	store   *store
	log     *slog.Logger
	cluster replicator
	silent  reminders        // of nodes that do not answer
	untold  reminders        // of notices that are given up
	now     func() time.Time // the wall clock
	chance  func() uint64    // seeds of random choices

	startable atomic.Int64 // no execution with a lower id is started any more
	restored  atomic.Int64 // end of the last restore, or restoreUnderway

	mu           sync.Mutex               // guards what follows
	term         uint64                   // in which it leads; 0: it does not
	number       uint64                   // of the last dispatch, question or kill of the term
	since        int64                    // start of the time in which it has led and been awake
	reached      uint64                   // log index up to which it knows what was applied
	released     int64                    // when a hold was released last
	later        map[int64]int64          // jobs and pending rows that cannot be decided yet, and when to try again
	reviewFar    int64                    // when to look at the pending rows that are due much later
	reviewWaits  int64                    // when to look at those that wait for something
	freed        []int64                  // pending rows to look at now, whatever they wait for
	until        int64                    // when the fire loop looks at what is due next
	looking      bool                     // the fire loop is at it, and may have missed what was armed since
	doubts       map[int64]doubt          // by execution
	expected     []node                   // on record when the term began, by name
	asked        []target                 // processes of the nodes at the last round of questions
	unresponsive map[string]bool          // nodes that did not answer their last orders
	mustAnswer   map[string]bool          // nodes to ask even if none of their executions is in doubt
	open         map[*dispatch]openOrders // orders without an answer yet
	stopping     bool                     // starts nothing any more

	courier *courier
	noticed chan struct{} // tells that there are new notices; capacity 1

	wake     chan struct{} // tells the fire loop that something earlier is due; capacity 1
	refusals chan struct{} // tells that a first order was refused; capacity 1

	tasks sync.WaitGroup // what runs beside the loops and ends with the term, such as a dispatch
	spawn func(func())   // starts such a task
	wait  func(context.Context, time.Duration) error
}

func newScheduler(cfg schedulerConfig, s *store, log *slog.Logger) *scheduler {
	sched := &scheduler{cfg: cfg, store: s, log: log, now: time.Now, chance: rand.Uint64, wait: pause,
		until: math.MaxInt64, later: map[int64]int64{}, doubts: map[int64]doubt{}, unresponsive: map[string]bool{},
		mustAnswer: map[string]bool{}, open: map[*dispatch]openOrders{}, wake: make(chan struct{}, 1),
		refusals: make(chan struct{}, 1), noticed: make(chan struct{}, 1), courier: &courier{}}
	sched.spawn = func(task func()) { go task() }
	return sched
}

// lead does the leader's work for one term, until ctx ends. The caller has applied the term's first entry, so the store
// has everything that earlier leaders committed.
func (s *scheduler) lead(ctx context.Context, term uint64) error {
	defer s.tasks.Wait()
	defer s.endTerm()
	for err := s.beginTerm(ctx, term); err != nil; err = s.beginTerm(ctx, term) {
		if err = cmp.Or(s.fatal(ctx, err), pause(ctx, beginPause)); err != nil {
			return s.fatal(ctx, err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	asked := make(chan struct{})
	g.Go(func() error { return s.settleDoubts(ctx, asked) })
	g.Go(func() error {
		// Ask first: most nodes answer at once, and a run that ended with its process must not count as an overlap. But
		// a node that does not answer must not keep others from running jobs.
		select {
		case <-ctx.Done():
		case <-asked:
		case <-time.After(firstAnswers):
		}
		return s.fireLoop(ctx)
	})
	g.Go(func() error { return s.trimLoop(ctx) })
	g.Go(func() error { return s.noticeLoop(ctx) })
	return g.Wait()
}

// beginTerm initializes the leader's state from the store. It may be repeated after an error.
func (s *scheduler) beginTerm(ctx context.Context, term uint64) error {
	expected, err := s.store.nodesSeen()
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.term != term {
		s.term, s.number, s.doubts = term, 0, map[int64]doubt{}
	}
	s.since, s.expected, s.asked = s.now().UnixNano(), expected, nil
	s.later, s.reviewFar, s.reviewWaits, s.freed, s.until = map[int64]int64{}, 0, 0, nil, s.since
	s.unresponsive, s.mustAnswer = map[string]bool{}, map[string]bool{}
	s.mu.Unlock()
	if err := s.doubtIf(func(executionRow) bool { return true }); err != nil {
		return err
	}
	m, err := s.store.meta()
	if err == nil && m.ClusterID == "" { // on which the servers agreed before they had a leader
		var own ownRow
		if own, err = s.store.own(); err == nil {
			err = s.decide(ctx, &command{Found: &foundation{ID: own.Cluster, Timezone: s.cfg.Timezone}})
		}
	}
	if err != nil {
		return err
	}
	return s.resetFuture(ctx)
}

// decide proposes a command of the leader's own.
func (s *scheduler) decide(ctx context.Context, c *command) error {
	c.Actor, c.Now = actorScheduler, cmp.Or(c.Now, s.now().UnixNano())
	_, err := s.propose(ctx, c)
	return err
}

// decideParts proposes a command for each part of a list.
func decideParts[T any](ctx context.Context, s *scheduler, parts iter.Seq[[]T], of func([]T) *command) error {
	for part := range parts {
		if err := s.decide(ctx, of(part)); err != nil {
			return err
		}
	}
	return nil
}

// propose has a command applied, and counts how long that takes.
func (s *scheduler) propose(ctx context.Context, c *command) (applied, error) {
	began := time.Now()
	if c.Consume != nil || c.Finish != nil || c.Notice != nil || c.Nodes != nil {
		c.Listeners = s.cfg.Listeners
	}
	res, err := s.cluster.propose(ctx, c)
	if res.Index != 0 {
		s.store.stats.commits.observe(time.Since(began))
	}
	return res, err
}

func (s *scheduler) endTerm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.term, s.until = 0, math.MaxInt64
}

// stopFiring lets nothing start any more, although the server still leads: it is about to stop, and what runs must
// still be recorded.
func (s *scheduler) stopFiring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping, s.until = true, math.MaxInt64
}

// begin allows a task of this term, which calls tasks.Done at its end, and returns the term with a number larger than
// all before. ok is false if the term is over.
func (s *scheduler) begin() (term, number uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == 0 {
		return 0, 0, false
	}
	s.number++
	s.tasks.Add(1)
	return s.term, s.number, true
}

// fatal returns err unless it is one of a proposal after which the leader goes on, or another one takes over. A refused
// command is not fatal: the next leader would fail of it too.
func (s *scheduler) fatal(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, errNotLeader) || errors.Is(err, errBusy) {
		return nil
	}
	if errors.As(err, new(refusal)) || errors.Is(err, errTooLarge) {
		s.log.Error("a decision of the leader was refused; please report that", "err", err)
		return nil
	}
	return err
}

// noteApplied does what follows from applied commands, whoever proposed them and whether or not the caller still waits.
// It is called in the order of the log, before waiting callers get their responses, and does not block.
func (s *scheduler) noteApplied(list ...applied) {
	if started := s.arm(list); len(started) > 0 {
		s.spawn(func() {
			defer s.tasks.Done()
			s.dispatch(started, false)
		})
	}
}

// arm wakes the fire loop for what applied commands have armed. It returns the executions that a task of this term must
// dispatch.
func (s *scheduler) arm(list []applied) (started []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range list {
		s.reached = a.Index
		if s.term == 0 {
			continue
		}
		if a.Noticed {
			notify(s.noticed)
		}
		if a.Untold > 0 && s.untold.due("", time.Now()) {
			s.log.Error("notices were given up because too many wait for their receivers", "notices", a.Untold)
		}
		for _, id := range slices.Concat(a.Started...) {
			s.doubts[id] = doubt{first: true, bound: a.Bound}
			started = append(started, id)
		}
		s.freed = append(s.freed, a.Freed...)
		if a.Armed != 0 && !s.stopping && (s.looking || a.Armed < s.until) {
			s.until = min(s.until, a.Armed)
			notify(s.wake)
		}
		if a.Released {
			s.released, s.reviewWaits = s.now().UnixNano(), 0
		}
	}
	if len(started) > 0 {
		s.tasks.Add(1)
	}
	return started
}

// notify sends to a channel of capacity 1 unless it is full.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// lookAgain has what is due looked at again, and a pending row, whatever it waits for.
func (s *scheduler) lookAgain(pending int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed = append(s.freed, pending)
	notify(s.wake)
}

// postpone has a job or a pending row looked at again at a time.
func (s *scheduler) postpone(id, at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later[id] = at
}

// openOrders are orders that a node has not answered yet.
type openOrders struct {
	node string
	sent time.Time
}

// moment returns what the leader knows now. A node that did not answer its last orders gets no others until it has
// answered a question.
func (s *scheduler) moment() moment {
	nodes, running := s.cluster.nodes(), map[string]int(nil)
	if slices.ContainsFunc(nodes, func(n node) bool { return n.limit() > 0 }) {
		var err error
		if running, err = s.store.loads(); err != nil {
			s.log.Warn("the loads of the nodes cannot be read; runs may wait for a full node", "err", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := moment{running: running, now: s.now().UnixNano(), since: s.since, catchup: s.cfg.Catchup,
		lostAfter: s.cfg.LostAfter, released: s.released, rules: s.store.shown.Load().rules, zone: s.timezone(),
		startable: s.startable.Load(), rnd: s.newRand(), picked: map[string]int{}}
	if s.term == 0 { // its work is about to begin: it has seen no node yet
		m.since = m.now
	}
	overdue, alive := map[string]bool{}, map[string]bool{}
	for _, o := range s.open {
		overdue[o.node] = overdue[o.node] || s.now().Sub(o.sent) > answerOverdue
	}
	for _, n := range nodes {
		alive[n.Name] = true
		n.Overdue = n.Overdue || overdue[n.Name]
		if _, drained := m.rules[ruleDrain][n.Name]; drained {
			continue
		}
		if s.unresponsive[n.Name] {
			m.unresponsive = append(m.unresponsive, n)
		} else {
			m.nodes = append(m.nodes, n)
		}
	}
	for _, n := range s.expected {
		if _, drained := m.rules[ruleDrain][n.Name]; !m.settled() && !alive[n.Name] && !drained {
			m.expected = append(m.expected, n)
		}
	}
	return m
}

// newRand returns a source of random numbers for one goroutine.
func (s *scheduler) newRand() *rand.Rand { return rand.New(rand.NewPCG(s.chance(), s.chance())) }

// fireLoop waits for the earliest item and fires all that are due. It looks at the clock every tickSlack: a longer gap
// is an outage.
func (s *scheduler) fireLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for slept := s.now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-timer.C:
		}
		woke := s.now()
		if err := s.fatal(ctx, s.noticeGap(ctx, slept, woke)); err != nil {
			return err
		}
		wait, err := s.fireDue(ctx)
		if err != nil {
			return err
		}
		timer.Reset(wait)
		if slept = s.now(); slept.Round(0).Before(woke.Round(0)) || stoodStill(woke, slept, nodeFailed) > 0 {
			slept = woke // the clock was set back, or the process suspended, while it fired: treated as if it had slept
		}
	}
}

// noticeGap resets since if the leader slept for longer than it meant to, by the monotonic or by the wall clock: a
// suspended machine stops the first, a stopped process neither. If the wall clock was set back, it had been ahead: the
// jobs that it carried into the future are reset, and nothing is put off any more.
func (s *scheduler) noticeGap(ctx context.Context, slept, woke time.Time) error {
	wall := woke.Round(0).Sub(slept.Round(0))
	gap := max(woke.Sub(slept), wall)
	if wall >= 0 && gap < 2*tickSlack {
		return nil
	}
	s.mu.Lock()
	s.since = woke.UnixNano()
	if wall < 0 {
		s.later, s.reviewFar, s.reviewWaits = map[int64]int64{}, 0, 0
	}
	s.mu.Unlock()
	if wall >= 0 {
		s.log.Warn("the leader was not awake; ticks that fell due meanwhile are caught up", "gap", gap)
		return nil
	}
	s.log.Warn("the clock was set back", "by", -wall)
	return s.resetFuture(ctx)
}

// fireDue decides and starts all that is due, and returns how long it is until something else falls due.
func (s *scheduler) fireDue(ctx context.Context) (time.Duration, error) {
	m := s.moment()
	jobs, pending, err := s.due(m.now)
	if err != nil {
		return 0, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(decidesMax)
	fire := func(ids []int64, decide func(context.Context, moment, []int64) error) {
		for ids := range slices.Chunk(ids, ticksMax) {
			m := m.withRand(s.newRand())
			g.Go(func() error { return decide(ctx, m, ids) })
		}
	}
	fire(jobs, s.fireTicks)
	fire(pending, s.firePending)
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return s.untilDue(m.now)
}

// due returns the jobs and the pending rows that must be looked at now. A row that is due much later is looked at every
// retryWaitMax: the clock that computed it may have been ahead. One that waits for something is looked at every
// waitPause, and when that is freed.
func (s *scheduler) due(now int64) (jobs, pending []int64, err error) {
	far := int64(math.MaxInt64)
	s.mu.Lock()
	maps.DeleteFunc(s.later, func(_, at int64) bool { return at <= now })
	if s.term == 0 || s.stopping {
		s.mu.Unlock()
		return nil, nil, nil
	}
	waits := now >= s.reviewWaits
	if waits {
		s.reviewWaits = now + int64(waitPause)
	}
	if s.looking = true; now >= s.reviewFar {
		far = now + int64(retryWaitMax)
		s.reviewFar = far
	}
	s.mu.Unlock()
	if jobs, pending, err = s.store.due(now, far, waits); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	skip := func(id int64) bool { return s.later[id] > now }
	jobs, pending = slices.DeleteFunc(jobs, skip), slices.DeleteFunc(pending, skip)
	seen := map[int64]bool{}
	pending = slices.DeleteFunc(slices.Concat(s.freed, pending), func(id int64) bool {
		again := seen[id]
		seen[id] = true
		return again
	})
	s.freed = nil
	return jobs, pending, nil
}

// untilDue returns how long it is until something falls due that was not when the fire loop looked: at most tickSlack.
func (s *scheduler) untilDue(looked int64) (time.Duration, error) {
	next, err := s.store.nextDue(looked)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	next = min(next, now.Add(tickSlack).UnixNano())
	for _, at := range s.later {
		next = min(next, at)
	}
	if s.looking = false; s.term != 0 && !s.stopping {
		s.until = next
	}
	return time.Duration(next - now.UnixNano()), err
}

// lag returns how long what is due has been waiting for the fire loop, 0 if nothing is.
func (s *scheduler) lag(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(max(0, now.UnixNano()-s.until))
}

// fireTicks decides the due ticks of jobs.
func (s *scheduler) fireTicks(ctx context.Context, m moment, ids []int64) error {
	rows, err := s.store.jobsByID(ids)
	if err != nil {
		return err
	}
	var list []decision
	for _, r := range rows {
		ds, err := s.planJob(m, r)
		if err != nil {
			return err
		}
		list = append(list, ds...)
	}
	return s.consume(ctx, m, list)
}

// planJob plans a job that is due.
func (s *scheduler) planJob(m moment, r *jobRow) ([]decision, error) {
	if r.Disabled || r.ParentJob != "" || r.next == never || r.next > m.now {
		return nil, nil // it has changed since
	}
	if m.rules.held(r.Metadata) != "" && r.schedule(m.zone).once() {
		s.postpone(r.version.ID, m.now+int64(tickSlack))
		return nil, nil
	}
	overlap := ""
	if r.Concurrency == concurrencyForbid && r.open > 0 {
		switch e, err := s.store.openExecution(r.version.ID); {
		case errors.Is(err, errNoExecution):
			overlap = "a retry of an earlier run is pending"
		case err != nil:
			return nil, err
		default:
			overlap = "overlap with " + executionName(e.ID, e.Node) + s.silence(e.ID)
		}
	}
	ds := m.plan(r, overlap)
	if len(ds) == 0 {
		s.postpone(r.version.ID, m.now+int64(tickSlack))
	}
	return ds, nil
}

// silence says how long the node of an execution has not answered for it, "" if it has.
func (s *scheduler) silence(execution int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	silent := s.doubts[execution].silent
	if silent == 0 {
		return ""
	}
	return fmt.Sprintf(", whose node has not answered for %s", silent.Round(time.Second))
}

// firePending decides pending rows.
func (s *scheduler) firePending(ctx context.Context, m moment, ids []int64) error {
	rows, err := s.store.pendingByID(ids)
	if err != nil {
		return err
	}
	jobs, err := jobsOf(s.store, rows, func(p pendingRow) int64 { return p.JobID })
	if err != nil {
		return err
	}
	var list []decision
	for _, p := range rows {
		if jobs[p.JobID] == nil {
			continue // the job was deleted, and its pending rows with it
		}
		if p.Cause != causeChildren && !p.Forced && m.rules.held(jobs[p.JobID].Metadata) != "" {
			s.postpone(p.ID, m.now+int64(tickSlack))
			continue
		}
		used, err := s.store.groupNodes(p.Group)
		if err != nil {
			return err
		}
		d, ok := m.planPending(p, jobs[p.JobID], used)
		switch {
		case len(d.Targets) > 0 && p.WaitsFor == ownGroup(p.JobID) && jobs[p.JobID].open > 0:
			if jobs[p.JobID].Concurrency == concurrencyReplace {
				if err := s.endReplaced(p); err != nil {
					return err
				}
			}
		case !ok:
			s.postpone(p.ID, m.now+int64(tickSlack))
		default:
			list = append(list, d)
		}
	}
	return s.consume(ctx, m, list)
}

// endReplaced tells the nodes to end what runs of a job, in whose place the pending row is to start. What a node does
// not hear is told again when the leader looks at the row again.
func (s *scheduler) endReplaced(p pendingRow) error {
	rows, err := s.store.unfinishedOf(p.JobID)
	why := fmt.Sprintf("replaced by the run of the job that was due at %s", timeOf(p.Asked).Format(time.RFC3339))
	for _, e := range rows {
		s.spawn(func() {
			if err := s.sendKill(e.Node, kill{Execution: e.ID, Why: why}); err != nil {
				s.log.Warn("a run that is to be replaced goes on", "execution", executionName(e.ID, e.Node), "err", err)
			}
		})
	}
	return err
}

// jobsOf returns the jobs of rows by their ids, without those that were deleted.
func jobsOf[T any](s *store, rows []T, jobOf func(T) int64) (map[int64]*jobRow, error) {
	ids := map[int64]bool{}
	for _, r := range rows {
		ids[jobOf(r)] = true
	}
	jobs, err := s.jobsByID(sortedKeys(ids))
	byID := make(map[int64]*jobRow, len(jobs))
	for _, r := range jobs {
		byID[r.version.ID] = r
	}
	return byID, err
}

// batches splits a list so that no batch has more than maxItems items, nor more than one item where the sum of their
// sizes is larger than maxSize.
func batches[T any](list []T, maxItems, maxSize int, size func(*T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		begin, sum := 0, 0
		for i := range list {
			n := size(&list[i])
			if i > begin && (i-begin == maxItems || sum+n > maxSize) {
				if !yield(list[begin:i]) {
					return
				}
				begin, sum = i, 0
			}
			sum += n
		}
		if begin < len(list) {
			yield(list[begin:])
		}
	}
}

// consume proposes decisions in as many commands as it takes. The runs are dispatched when the commands are applied;
// see noteApplied.
func (s *scheduler) consume(ctx context.Context, m moment, list []decision) error {
	for list := range batches(list, ticksMax, consumeBytes, (*decision).size) {
		var targets []target
		for _, d := range list {
			targets = append(targets, d.Targets...)
		}
		c := &command{Actor: actorScheduler, Now: m.now, Consume: list, Limits: m.limits(targets)}
		res, err := s.propose(ctx, c)
		for i, d := range list {
			// Look again at what was refused, because its job has changed, and at what may not have been committed: if
			// it was after all, nothing is due by then.
			switch {
			case err != nil:
				s.postpone(cmp.Or(d.Pending, d.Job), m.now+int64(tickSlack))
			case !res.Accepted[i]:
				s.lookAgain(d.Pending)
			}
		}
		if err := s.fatal(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// size returns an upper bound of the decision's JSON, in which one byte of a text takes up to six.
func (d *decision) size() int {
	n := decisionBytes + 6*len(d.Reason)
	for _, t := range d.Targets {
		n += targetBytes + 12*len(t.Node) // also among the limits
	}
	return n
}

// dispatch gives the nodes the orders for executions that apply started or bound, or, with again, for those that surely
// never started. Each order is for the process that its execution was given to, not for a later one of the node. It
// does not wait for answers. If this server stood still between a decision and its acceptance, until the catch-up
// window had passed, nothing is ordered: the execution is in doubt, and resolve decides as if its tick were planned
// now.
func (s *scheduler) dispatch(ids []int64, again bool) {
	if len(ids) == 0 {
		return
	}
	orders, err := s.orders(ids, again)
	if err != nil {
		s.log.Error("started executions cannot be read; their nodes are asked", "err", err)
		s.doubt(ids)
		return
	}
	byNode := func(a, b target) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Incarnation, b.Incarnation))
	}
	for _, t := range slices.SortedFunc(maps.Keys(orders), byNode) {
		// No part is too large for a request: a node would refuse it every time.
		for part := range batches(orders[t], math.MaxInt, dispatchBytes, (*order).size) {
			d := &dispatch{Incarnation: t.Incarnation, Startable: s.startable.Load(), Orders: part}
			var ok bool
			if d.Term, d.Number, ok = s.begin(); !ok {
				return // the next leader finds the executions unfinished, and asks
			}
			s.mu.Lock()
			s.open[d] = openOrders{t.Node, s.now()}
			s.mu.Unlock()
			s.spawn(func() {
				defer s.tasks.Done()
				s.send(t, d)
			})
		}
	}
}

// orders returns what the nodes are told of unfinished executions.
func (s *scheduler) orders(ids []int64, again bool) (map[target][]order, error) {
	rows, jobs, err := s.unfinished(ids)
	if err != nil {
		return nil, err
	}
	orders, now := map[target][]order{}, s.now().UnixNano()
	for _, e := range rows {
		j := jobs[e.JobID]
		if j == nil || !again && now-e.Started > int64(s.cfg.Catchup) {
			s.doubt([]int64{e.ID})
			continue
		}
		orders[e.target()] = append(orders[e.target()], order{Execution: e.ID, Job: j.Name, Group: e.Group,
			Attempt: e.Attempt, ScheduledAt: e.Due, Executor: j.Executor, Config: j.ExecutorConfig,
			Processors: j.Processors, Timeout: j.Timeout, Params: j.runParams(e.Params)})
	}
	return orders, nil
}

// unfinished returns the unfinished ones of some executions, and their jobs.
func (s *scheduler) unfinished(ids []int64) (rows []executionRow, jobs map[int64]*jobRow, err error) {
	if rows, err = s.store.unfinishedByID(ids); err == nil {
		jobs, err = jobsOf(s.store, rows, executionRow.job)
	}
	return rows, jobs, err
}

// job is the id of the execution's job.
func (e executionRow) job() int64 { return e.JobID }

// size is about what an order takes in a request, if nothing in it must be escaped.
func (o *order) size() int {
	n := orderBytes + len(o.Job) + len(o.Executor)
	count := func(m map[string]string) {
		for k, v := range m {
			n += len(k) + len(v)
		}
	}
	count(o.Config)
	count(o.Params)
	for name, settings := range o.Processors {
		n += len(name)
		count(settings)
	}
	return n
}

// send gives a process its orders. If it refuses the first order for an execution that anybody can have sent, the
// execution never started, and rebind gives it to another process. Without an answer the execution is in doubt.
func (s *scheduler) send(t target, d *dispatch) {
	err := s.cluster.start(t.Node, *d)
	if err != nil && s.silent.due("orders of "+t.Node, time.Now()) {
		s.log.Warn("a node did not take its orders", "node", t.Node, "orders", len(d.Orders), "err", err)
	}
	refused := errors.Is(err, errRefused) && processGone(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, d)
	if err != nil && (!errors.Is(err, errRefused) || errors.Is(err, errNoConnection)) {
		s.unresponsive[t.Node] = true
	}
	for _, o := range d.Orders {
		doubt := s.doubts[o.Execution]
		switch {
		case err == nil && doubt.since.IsZero():
			delete(s.doubts, o.Execution)
			continue
		case refused && doubt.first:
			doubt.refused = t
		}
		doubt.first = false
		if doubt.since.IsZero() {
			doubt.since = s.now()
		}
		s.doubts[o.Execution] = doubt
	}
	if refused {
		notify(s.refusals)
	}
}

// processGone reports whether a refusal says that the process which the orders were for takes none any more. With other
// refusals it may take them when they are sent again: a later question or leader had overtaken them, or its queue was
// full.
func processGone(err error) bool {
	return !errors.Is(err, errStaleTerm) && !errors.Is(err, errStaleNumber) && !errors.Is(err, errQueueFull)
}

// A doubt is about an unfinished execution of which the leader does not know whether it runs.
type doubt struct {
	since   time.Time     // of the last question, or of the doubt; zero: there is none yet
	silent  time.Duration // sum of the gaps before that, each as at most nodeFailed
	first   bool          // the first order to this process, accepted in this term, is on its way
	bound   bool          // this is not the process that it was started for
	refused target        // the process that refused the first order, so that the execution never started there
}

// doubt puts executions in doubt none of whose orders is on its way.
func (s *scheduler) doubt(ids []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		d := s.doubts[id]
		d.first = false
		if d.since.IsZero() {
			d.since = s.now()
		}
		s.doubts[id] = d
	}
}

// doubtIf puts in doubt the unfinished executions for which bad holds.
func (s *scheduler) doubtIf(bad func(executionRow) bool) error {
	rows, err := s.store.unfinishedExecutions()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range rows {
		if d := s.doubts[e.ID]; d.since.IsZero() && bad(e) {
			d.since = s.now()
			s.doubts[e.ID] = d
		}
	}
	return nil
}

// doubtOld puts in doubt what has been unfinished for long, so that no record stays unfinished after its node has
// forgotten it.
func (s *scheduler) doubtOld(now time.Time) error {
	return s.doubtIf(func(e executionRow) bool { return now.UnixNano()-e.Started > int64(reviewPause) })
}

// doubtOthers compares the processes of the nodes with those of the last round. It puts in doubt what was given to
// processes that are gone, and has new ones asked: they may run what was closed by hand meanwhile.
func (s *scheduler) doubtOthers() error {
	var alive []target
	for _, n := range s.cluster.nodes() {
		alive = append(alive, n.target())
	}
	s.mu.Lock()
	same := slices.Equal(s.asked, alive)
	for _, t := range alive {
		if !slices.Contains(s.asked, t) {
			s.mustAnswer[t.Node] = true
		}
	}
	s.asked = alive
	s.mu.Unlock()
	if same {
		return nil
	}
	return s.doubtIf(func(e executionRow) bool { return !slices.Contains(alive, e.target()) })
}

// mustAsk has nodes asked in the next round.
func (s *scheduler) mustAsk(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.mustAnswer[name] = true
	}
}

// settleDoubts asks the nodes about executions in doubt, round after round, until ctx ends. asked is closed after the
// first round. Only its goroutine rebinds and orders again, so that neither crosses the other.
func (s *scheduler) settleDoubts(ctx context.Context, asked chan<- struct{}) error {
	round := time.NewTimer(0)
	defer round.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.refusals:
			if err := s.fatal(ctx, s.rebind(ctx)); err != nil {
				return err
			}
		case <-round.C:
			if err := s.fatal(ctx, s.askNodes(ctx)); err != nil {
				return err
			}
			if asked != nil {
				close(asked)
				asked = nil
			}
			round.Reset(doubtPause)
		}
	}
}

// askNodes asks once about everything in doubt.
func (s *scheduler) askNodes(ctx context.Context) error {
	if err := s.fatal(ctx, s.recordNodes(ctx)); err != nil { // a node that cannot be recorded is asked nevertheless
		return err
	}
	if err := s.rebind(ctx); err != nil {
		return err
	}
	if err := s.doubtOthers(); err != nil {
		return err
	}
	startable, err := s.store.startable(s.now().Add(-startableAge).UnixNano())
	if err != nil {
		return err
	}
	s.startable.Store(max(startable, s.startable.Load()))
	doubts, err := s.inDoubt()
	if err != nil {
		return err
	}
	names := s.toAsk(doubts)
	answers, errs := make([]answer, len(names)), make([]error, len(names))
	answered := make(chan int, len(names))
	for i, name := range names {
		q := question{All: true}
		for _, e := range doubts[name] {
			q.Executions = append(q.Executions, e.ID)
		}
		var ok bool
		if q.Term, q.Number, ok = s.begin(); !ok {
			return nil
		}
		s.spawn(func() {
			defer s.tasks.Done()
			answers[i], errs[i] = s.cluster.ask(name, q)
			answered <- i
		})
	}
	for range names {
		i, err := s.nextAnswer(ctx, answered)
		name := names[i]
		switch list := doubts[name]; {
		case err != nil:
		case errs[i] != nil:
			if s.silent.due(name, time.Now()) {
				s.log.Warn("a node does not answer for its executions",
					"node", name, "executions", len(list), "err", errs[i])
			}
			s.mustAsk(name)
			err = s.countSilence(ctx, list)
		default:
			err = s.takeAnswer(ctx, name, list, answers[i])
		}
		if err != nil {
			s.mustAsk(names...) // some answers were not used
			return err
		}
	}
	return nil
}

// nextAnswer waits for a node to answer. A slow node delays neither the answers of others nor what they refused.
func (s *scheduler) nextAnswer(ctx context.Context, answered <-chan int) (int, error) {
	for {
		if err := s.rebind(ctx); err != nil {
			return 0, err
		}
		select {
		case i := <-answered:
			return i, nil
		case <-s.refusals:
		}
	}
}

// recordNodes records which nodes are there, for the next leader. A node is removed once it counts as failed.
func (s *scheduler) recordNodes(ctx context.Context) error {
	recorded, err := s.store.nodesSeen()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.expected = recorded
	s.mu.Unlock()
	settled := s.moment().settled()
	gone := map[string]node{}
	for _, n := range recorded {
		gone[n.Name] = n
	}
	var changes []nodeSeen
	for _, n := range s.cluster.nodes() {
		if old, ok := gone[n.Name]; !ok || !maps.Equal(old.Tags, n.Tags) {
			changes = append(changes, nodeSeen{Name: n.Name, Tags: n.Tags})
		}
		delete(gone, n.Name)
	}
	for _, name := range sortedKeys(gone) {
		if settled {
			changes = append(changes, nodeSeen{Name: name, Gone: true, Failed: !s.cluster.left(name)})
		}
	}
	size := func(n *nodeSeen) int { return recordBytes(&record{Tags: n.Tags}) }
	parts := batches(changes, math.MaxInt, sliceBytes, size)
	return decideParts(ctx, s, parts, func(part []nodeSeen) *command { return &command{Nodes: part} })
}

// inDoubt returns the unfinished executions in doubt by node, except those that are for rebind, and forgets the
// finished ones. A node is never asked while the first order for an execution is on its way: the order might arrive
// after the question, and be taken.
func (s *scheduler) inDoubt() (map[string][]executionRow, error) {
	s.mu.Lock()
	finished := maps.Clone(s.doubts)
	s.mu.Unlock()
	maps.DeleteFunc(finished, func(_ int64, d doubt) bool { return d.first })
	rows, err := s.store.unfinishedByID(sortedKeys(finished))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	byNode := map[string][]executionRow{}
	for _, e := range rows {
		d, ok := s.doubts[e.ID]
		underway := d.first || e.ID >= key(s.reached+1, 0) // arm has not seen it yet
		if ok && !underway && d.refused == (target{}) {
			byNode[e.Node] = append(byNode[e.Node], e)
		}
		delete(finished, e.ID)
	}
	for id := range finished {
		delete(s.doubts, id)
	}
	return byNode, nil
}

// toAsk returns the nodes that have executions in doubt, and those alive that must answer anyway, by name. A node that
// did not answer its orders is asked until it answers.
func (s *scheduler) toAsk(doubts map[string][]executionRow) []string {
	names, nodes := slices.Collect(maps.Keys(doubts)), s.cluster.nodes()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		if s.mustAnswer[n.Name] || s.unresponsive[n.Name] {
			names = append(names, n.Name)
		}
	}
	for _, name := range names {
		delete(s.mustAnswer, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// countSilence adds the time since the last question about executions whose node has not answered, and gives up those
// that have been silent for long enough. A gap counts as at most nodeFailed, so that neither a jump of the clock nor a
// suspended leader makes it long.
func (s *scheduler) countSilence(ctx context.Context, list []executionRow) error {
	m, now := s.moment(), s.now()
	var lost []report
	s.mu.Lock()
	for _, e := range list {
		d := s.doubts[e.ID]
		d.silent += min(max(0, now.Sub(d.since), now.Round(0).Sub(d.since.Round(0))), nodeFailed)
		d.since = now
		s.doubts[e.ID] = d
		if d.silent >= s.cfg.LostAfter {
			const why = "lost: %s has not answered for %s; the run may or may not have ended\n"
			lost = append(lost, m.closing(e, outcomeLost, why, e.Node, d.silent.Round(time.Second)))
		}
	}
	s.mu.Unlock()
	return s.finish(ctx, lost)
}

// takeAnswer records the results in a node's answer, ends what was killed meanwhile, and settles its executions in
// doubt. What is ordered again, or closed, stays in doubt until the next answer, or its row, says that it happened.
func (s *scheduler) takeAnswer(ctx context.Context, name string, list []executionRow, a answer) error {
	s.mu.Lock()
	delete(s.unresponsive, name)
	s.mu.Unlock()
	if _, err := s.report(ctx, a.Held); err != nil {
		return err
	}
	if err := s.endKilled(name, a.Running); err != nil {
		return err
	}
	jobs, err := jobsOf(s.store, list, executionRow.job)
	if err != nil {
		return err
	}
	m, known := s.moment(), a.known()
	var again []int64
	var gone []report
	for _, e := range list {
		c, never := m.resolve(e, a, known, jobs[e.JobID])
		switch {
		case never:
			again = append(again, e.ID)
		case c.Outcome != "":
			gone = append(gone, c)
		default:
			s.mu.Lock()
			delete(s.doubts, e.ID)
			s.mu.Unlock()
		}
	}
	s.dispatch(again, true)
	return s.finish(ctx, gone)
}

// known returns the executions that the node runs or whose results it holds.
func (a *answer) known() map[int64]bool {
	known := map[int64]bool{}
	for _, id := range a.Running {
		known[id] = true
	}
	for _, r := range a.Held {
		known[r.Execution] = true
	}
	return known
}

// endKilled ends what a node still runs although it was closed by hand.
func (s *scheduler) endKilled(name string, running []int64) error {
	killed, err := s.store.killed(running)
	for _, id := range killed {
		k := kill{Execution: id, Why: "killed by hand while its node did not answer"}
		if err := s.sendKill(name, k); err != nil {
			s.log.Warn("a run that was closed by hand goes on", "execution", executionName(id, name), "err", err)
		}
	}
	return err
}

// sendKill tells a node to end an execution.
func (s *scheduler) sendKill(name string, k kill) (err error) {
	var ok bool
	if k.Term, k.Number, ok = s.begin(); !ok {
		return errNotLeader
	}
	defer s.tasks.Done()
	return s.cluster.end(name, k)
}

// rebind gives executions whose first order was refused to another node if a count chose this one, else to the node's
// new process; an execution for which there is neither is missed.
func (s *scheduler) rebind(ctx context.Context) error {
	refused := map[int64]doubt{}
	s.mu.Lock()
	for id, d := range s.doubts {
		if d.refused != (target{}) {
			refused[id] = d
		}
	}
	s.mu.Unlock()
	if len(refused) == 0 {
		return nil
	}
	rows, jobs, err := s.unfinished(sortedKeys(refused))
	if err != nil {
		return err
	}
	m := s.moment()
	var moves []binding
	var targets []target
	var gone []report
	for _, e := range rows {
		d := refused[e.ID]
		if d.refused != e.target() {
			continue // it is bound, and its order about to be sent: see arm
		}
		used, err := s.store.groupNodes(e.Group)
		if err != nil {
			return err
		}
		var to target // zero: there is none, or the job was deleted
		if r := jobs[e.JobID]; r != nil {
			to, _ = m.elsewhere(r.Tags, e.Node, used)
		}
		switch {
		case to == target{} || to == e.target() || d.bound:
			const why = "missed: %s did not take the order, and no other node could\n"
			gone = append(gone, m.closing(e, outcomeMissed, why, e.Node))
		default:
			moves = append(moves, binding{Execution: e.ID, Incarnation: e.incarnation, To: to})
			targets = append(targets, to)
		}
	}
	if err := s.finish(ctx, gone); err != nil {
		return err
	}
	return decideParts(ctx, s, slices.Chunk(moves, ticksMax), func(part []binding) *command {
		return &command{Now: m.now, Bind: part, Limits: m.limits(targets)}
	})
}

// finish proposes the ends of executions.
func (s *scheduler) finish(ctx context.Context, list []report) error {
	parts := slices.Chunk(list, reportsMax)
	return decideParts(ctx, s, parts, func(part []report) *command { return &command{Finish: part} })
}

// report records final reports of a node. It returns the executions whose reports the node may forget: all of them,
// once they are committed.
func (s *scheduler) report(ctx context.Context, results []result) (taken []int64, err error) {
	var list []report
	for _, r := range results {
		taken = append(taken, r.Execution)
		list = append(list, report{result: r})
	}
	if err := s.finish(ctx, list); err != nil {
		return nil, err
	}
	return taken, nil
}

// trimLoop deletes what need not be kept, a slice at a time. Every reviewPause it looks for jobs that a wrong clock has
// carried into the future, and for executions that do not end.
func (s *scheduler) trimLoop(ctx context.Context) error {
	ticker := time.NewTicker(trimPause)
	defer ticker.Stop()
	var requests requestAge
	var reviewed time.Time
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return nil
		case now = <-ticker.C:
		}
		whole := now.Sub(reviewed) >= reviewPause
		if whole {
			reviewed = now
			if err := cmp.Or(s.fatal(ctx, s.resetFuture(ctx)), s.doubtOld(now)); err != nil {
				return err
			}
		}
		requests.advance(now, s.store.applied.Load())
		if err := s.fatal(ctx, s.trim(ctx, requests.expired, now, whole)); err != nil {
			return err
		}
	}
}

// A noticeLane is what one receiver is told of one job, in the order in which it happened.
type noticeLane struct {
	receiver string
	job      int64
}

// A delivery is the end of the attempts to deliver a notice.
type delivery struct {
	lane noticeLane
	id   int64
	err  error // why it was given up; nil: the receiver has it
}

// noticeLoop tells receivers what has happened, each lane on its own. A notice is removed after it was delivered: the
// next leader may deliver it again, with the same key.
func (s *scheduler) noticeLoop(ctx context.Context) error {
	own, err := s.store.own()
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	defer s.courier.rest()
	defer sending.Wait()
	lanes, stops, held, last := map[noticeLane][]noticeRow{}, map[noticeLane]func(){}, 0, int64(0)
	ended := make(chan delivery, ticksMax)
	send := func(l noticeLane, row noticeRow) {
		one, stop := context.WithCancel(ctx)
		stops[l] = stop
		sending.Go(func() {
			defer stop()
			err := s.deliver(one, own.Cluster, row)
			select {
			case ended <- delivery{l, row.ID, err}:
			case <-ctx.Done():
			}
		})
	}
	// prune drops the notices that apply gave up because too many wait: a receiver that takes none holds up no other.
	prune := func() error {
		ids, err := s.store.noticeIDs()
		if err != nil {
			return err
		}
		gone := func(row noticeRow) bool { _, ok := slices.BinarySearch(ids, row.ID); return !ok }
		for l, rows := range lanes {
			if gone(rows[0]) {
				stops[l]()
			}
			lanes[l] = append(rows[:1], slices.DeleteFunc(rows[1:], gone)...)
			held -= len(rows) - len(lanes[l])
		}
		return nil
	}
	look := time.NewTicker(trimPause)
	defer look.Stop()
	watch := lookout{told: map[string]string{}}
	first := occasion{Notice: notice{Event: eventNewLeader, Node: s.courier.node, Reason: s.courier.node + " leads"}}
	if err := s.fatal(ctx, s.tell(ctx, first)); err != nil {
		return err
	}
	var gone deliveries
	end := func(d delivery) {
		held--
		switch d.err {
		case nil:
			gone.Taken = append(gone.Taken, d.id)
		case errNoMail:
			gone.Void = append(gone.Void, d.id)
		default:
			gone.Lost = append(gone.Lost, d.id)
		}
		if lanes[d.lane] = lanes[d.lane][1:]; len(lanes[d.lane]) > 0 {
			send(d.lane, lanes[d.lane][0])
		} else {
			delete(lanes, d.lane)
			delete(stops, d.lane)
		}
	}
	for {
		if held >= 2*noticesMax {
			if err := prune(); err != nil {
				return err
			}
		}
		for held < 2*noticesMax {
			rows, err := s.store.notices(last, ticksMax)
			if err != nil {
				return err
			}
			for _, row := range rows {
				l := noticeLane{row.Receiver, row.JobID}
				if lanes[l] = append(lanes[l], row); len(lanes[l]) == 1 {
					send(l, row)
				}
				held, last = held+1, row.ID
			}
			if len(rows) < ticksMax {
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.noticed:
			continue
		case now := <-look.C:
			if err := s.fatal(ctx, s.watch(ctx, &watch, now, sending.Go)); err != nil {
				return err
			}
		case d := <-ended:
			end(d)
		}
		for len(ended) > 0 && gone.n() < ticksMax {
			end(<-ended)
		}
		if gone.n() == 0 {
			continue
		}
		err := s.decide(ctx, &command{Delivered: &gone})
		if err == nil {
			gone = deliveries{}
		} else if err := s.fatal(ctx, err); err != nil {
			return err
		}
	}
}

// lookout is what a leader remembers of what it looks for.
type lookout struct {
	told map[string]string // event of the cluster → that it goes on
	beat time.Time         // last call of the heartbeat URL
}

// watch tells of runs and jobs that are overdue, and of what is wrong with the cluster. A fire loop that stands still
// makes no heartbeat.
func (s *scheduler) watch(ctx context.Context, w *lookout, now time.Time, spawn func(func())) error {
	if s.courier.cfg.Heartbeat.URL != "" && now.Sub(w.beat) >= time.Minute && s.lag(s.now()) < time.Minute {
		w.beat = now
		spawn(func() {
			if err := s.courier.deliver(ctx, receiverHeartbeat, "", notice{}); err != nil && ctx.Err() == nil {
				s.log.Warn("--heartbeat-url cannot be called", "err", err)
			}
		})
	}
	list, err := s.overdue(s.now().UnixNano())
	if err != nil {
		return err
	}
	conditions := s.cluster.conditions()
	for _, event := range sortedKeys(conditions) {
		if why := conditions[event]; why != "" && w.told[event] == "" {
			list = append(list, occasion{Notice: notice{Event: event, Node: s.courier.node, Reason: why}})
		}
	}
	w.told = conditions
	return s.tell(ctx, list...)
}

// overdue returns the runs that go on for longer than their job's max_runtime, and the jobs without success for
// max_silence, of which nobody was told yet.
func (s *scheduler) overdue(now int64) (list []occasion, err error) {
	rows, err := s.store.watched()
	for _, r := range rows {
		runtime, err := time.ParseDuration(r.maxRuntime)
		if err == nil && r.id != 0 && now-r.started > int64(runtime) {
			list = append(list, occasion{Job: r.job, Execution: r.id, Notice: notice{Event: eventOverdue, Job: r.name,
				Execution: executionName(r.id, r.node), Node: r.node, Started: timeOf(r.started),
				Reason: "it has been running for more than " + r.maxRuntime}})
		}
		silence, err := time.ParseDuration(r.maxSilence)
		if err == nil && !r.disabled && r.heard != never && now-r.heard > int64(silence) {
			list = append(list, occasion{Job: r.job, Heard: r.heard, Notice: notice{Event: eventOverdue, Job: r.name,
				Reason: "it has not succeeded for " + r.maxSilence}})
		}
	}
	return list, err
}

// tell proposes notices of what no other command is about.
func (s *scheduler) tell(ctx context.Context, list ...occasion) error {
	listeners := s.courier.cfg.listeners()
	list = slices.DeleteFunc(list, func(o occasion) bool { return o.Job == 0 && listeners[o.Notice.Event] == nil })
	parts := slices.Chunk(list, reportsMax)
	return decideParts(ctx, s, parts, func(part []occasion) *command { return &command{Notice: part} })
}

// deliver tells the receiver of a notice, in attempts until noticeAge after it was made. The error is why it was given
// up, or errNoMail.
func (s *scheduler) deliver(ctx context.Context, cluster string, row noticeRow) error {
	var n notice
	err := json.Unmarshal([]byte(row.Doc), &n)
	if id, _, _ := strings.Cut(n.Execution, "-"); err == nil && s.courier.wantsOutput(row.Receiver) {
		execution, _ := strconv.ParseInt(id, 10, 64) // 0: there is none
		if e, err := s.store.execution(execution); err == nil {
			n.whole = string(e.Output)
		}
	}
	for wait := noticeWait; err == nil; wait = min(2*wait, noticeWaitMax) {
		err = s.courier.deliver(ctx, row.Receiver, fmt.Sprintf("%s-%d", cluster, row.ID), n)
		if err == nil || err == errNoMail {
			return err
		}
		if ctx.Err() == nil && s.now().Sub(timeOf(row.Made)) >= noticeAge {
			break
		}
		err = pause(ctx, wait)
	}
	if ctx.Err() == nil {
		channel, _, _ := strings.Cut(row.Receiver, " ") // what follows may be secret
		s.log.Error("a notice was given up",
			"event", n.Event, "job", n.Job, "execution", n.Execution, "receiver", channel, "err", err)
	}
	return err
}

// requestAge tells which requests are older than requestsKept. It measures their age from what this leader has itself
// seen: only then are ten minutes really ten minutes.
type requestAge struct {
	expired uint64    // log index up to which requests need not be kept, 0 in the first ten minutes
	marked  time.Time // when the log had reached next
	next    uint64
}

// advance notes that the log has reached an index. What is kept spans one to two times requestsKept.
func (r *requestAge) advance(now time.Time, index uint64) {
	if r.marked.IsZero() || now.Sub(r.marked) > requestsKept {
		r.expired, r.marked, r.next = r.next, now, index
	}
}

// trim proposes everything there is to trim, slice after slice. By age only a leader deletes that has led for as long
// as requests are kept: what a wrong clock deletes does not come back, and by then somebody may have seen it in
// /health.
func (s *scheduler) trim(ctx context.Context, requests uint64, now time.Time, whole bool) error {
	keep := retention{executions: s.cfg.ExecutionsKept, failures: s.cfg.FailuresKept, requests: requests,
		badFrom: now.Add(-failuresAge).UnixNano(), auditBytes: s.cfg.AuditKeptBytes}
	if requests != 0 {
		keep.day, keep.audit = now.UnixNano()/nanosPerDay-daysKept, now.Add(-s.cfg.AuditKept).UnixNano()
	}
	gone := "" // from the audit trail, for its size
	for ctx.Err() == nil {
		t, err := s.store.trimmable(keep, whole)
		if err == nil && s.restored.Load() < now.Add(-stagedKept).UnixNano() {
			t.Restore, err = s.store.stagedRestore()
		}
		if gone != "" && (err != nil || t.auditUpto == 0) {
			s.log.Warn("the audit trail exceeded --audit-keep-bytes: its oldest rows were deleted", "deleted", gone)
			gone = ""
		}
		if err != nil || t.empty() {
			return err
		}
		c := &command{Now: now.UnixNano(), Trim: &t}
		if t.auditUpto != 0 {
			gone = "rows up to " + timeOf(t.auditUpto).Format(time.RFC3339Nano)
			c.Audit = &audited{Action: actionTrimAudit, Object: gone}
		}
		if err := s.decide(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// resetFuture computes anew the next ticks of jobs that a clock which was ahead has carried into the future.
func (s *scheduler) resetFuture(ctx context.Context) error {
	m := s.moment()
	for after := int64(0); ; {
		ids, err := s.store.firedAfter(m.now+int64(futureMax), after)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		rows, err := s.store.jobsByID(ids)
		if err != nil {
			return err
		}
		var list []reset
		for _, r := range rows {
			const why = "ticks up to %s had been decided by a clock ahead of its time; the schedule goes on from now"
			list = append(list, reset{Job: r.version.ID, Rev: r.version.Rev, Fired: r.fired,
				Next:   r.firstTick(m.zone, m.now, 0),
				Reason: fmt.Sprintf(why, timeOf(r.fired).Format(time.RFC3339))})
		}
		if len(list) == 0 {
			continue
		}
		if err := s.decide(ctx, &command{Now: m.now, Reset: list}); err != nil {
			return err
		}
		s.log.Warn("jobs that a clock ahead of its time had carried into the future go on from now", "jobs", len(list))
	}
}

// A request is a write that a client asked for.
type request struct {
	Actor   string
	Address string            // of the client, for the audit trail
	ID      string            // never empty; a request with the same id changes nothing again
	Rev     *int64            // that the job must have, 0: there must be no such job; nil: any
	Params  map[string]string // of a run; so is the next
	Force   bool
	Keep    func(*jobRow) string // response to a repetition, from the job after the write; nil: none is kept
}

// attempt lets compute fill in a command from the present state and proposes it. It starts again while the job changes
// meanwhile or one of its ticks is being decided. A request that was done before is not computed again: what it asks
// for may be impossible by now. compute returns the job to respond with, if any; it also sets Answer where something
// else is to be kept. res.repeated tells that the request was done before; then row may be nil.
func (s *scheduler) attempt(ctx context.Context, r request, action string,
	compute func(c *command) (*jobRow, error)) (row *jobRow, res applied, err error) {
	if r.Keep != nil {
		if res, ok, err := s.store.request(r.ID); ok || err != nil {
			return nil, res, err
		}
	}
	// A client that goes away does not stop a write, which may be in the log already.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	now := s.now().UnixNano()
	for range writeTries {
		c := &command{Actor: r.Actor, Now: now, Request: r.ID, Audit: &audited{Action: action, Address: r.Address}}
		if row, err = compute(c); err == nil {
			switch {
			case r.Keep == nil:
				c.Answer = ""
			case row != nil:
				c.Answer = r.Keep(row)
			}
			if r.Rev != nil && row != nil {
				c.If = &jobVersion{row.version.ID, *r.Rev}
			}
			res, err = s.propose(ctx, c)
		}
		m := s.moment()
		now = m.now
		switch {
		case errors.Is(err, errUndecided) && len(c.Put) == 1:
			// The fire loop may be late for long, or wait for a node that does not answer.
			m.unresponsive = nil
			if err := s.fireTicks(ctx, m, []int64{c.Put[0].Base.ID}); err != nil {
				return nil, applied{}, err
			}
		case !errors.Is(err, errConflict) && !errors.Is(err, errUndecided):
			return row, res, err
		}
		wait := writePause
		if !m.settled() { // what waits for nodes is decided within seconds
			wait = 2 * nodeFailed / writeTries
		}
		if err := s.wait(ctx, wait); err != nil {
			return nil, applied{}, err
		}
	}
	return nil, applied{}, errConflict
}

// put creates or updates a job and returns it as it is then. Counters and status stay, and so does the next tick unless
// the schedule, or what else decides it, has changed.
func (s *scheduler) put(ctx context.Context, r request, sent job) (*jobRow, applied, error) {
	if err := s.validate(&sent, s.now().UnixNano()); err != nil {
		return nil, applied{}, badInput{err}
	}
	row, res, err := s.attempt(ctx, r, actionPut, func(c *command) (*jobRow, error) {
		base, err := s.store.job(sent.Name)
		if errors.Is(err, errNoJob) {
			base, err = &jobRow{job: sent}, nil
		}
		if err != nil {
			return nil, err
		}
		c.Submit = true
		return s.putOver(*base, sent, c), nil
	})
	if err == nil && res.repeated() && !answeredFor(res.Answer, sent) {
		err = errKeyUsed
	}
	return row, res, err
}

// errKeyUsed refuses a request whose key was used before, with another body.
var errKeyUsed = errors.New("Idempotency-Key: was used before, for a request with another body; " +
	"use a new key for each request")

// answeredFor reports whether the response that was kept for a put, if any, was to a put of j.
func answeredFor(answer string, j job) bool {
	if answer == "" {
		return true
	}
	was, err := decodeJob([]byte(answer), job{})
	was.dropRecord() // the response has the counters of that time
	j.dropRecord()
	return err == nil && was.document() == j.document()
}

// putOver adds to a command the write of j over a row, and returns the row as it is then. The next tick stays unless
// something that it follows from has changed.
func (s *scheduler) putOver(r jobRow, j job, c *command) *jobRow {
	was := r.job
	if r.version != (jobVersion{}) {
		j.dropRecord()
	}
	keep := r.version != jobVersion{} && was.Schedule == j.Schedule && was.Timezone == j.Timezone &&
		was.Disabled == j.Disabled && was.ParentJob == j.ParentJob && was.StartsAt == j.StartsAt &&
		was.ExpiresAt == j.ExpiresAt
	if !keep {
		r.next = j.firstTick(s.timezone(), c.Now, r.fired)
	}
	c.Put = append(c.Put, jobPut{Base: r.version, Job: j, Keep: keep, Next: r.next})
	r.job, r.doc = j, []byte(j.document())
	r.SuccessCount, r.ErrorCount = was.SuccessCount, was.ErrorCount
	r.LastSuccess, r.LastError = was.LastSuccess, was.LastError
	return &r
}

// timezone returns the cluster's default zone: before there is a cluster, the one that this server would give it.
func (s *scheduler) timezone() string { return cmp.Or(s.store.shown.Load().timezone, s.cfg.Timezone) }

// restored is the result of a restore that is done.
type restored struct {
	ID   int64 // of its rows in the table staged
	Jobs int
}

// errRestoring refuses a restore while another one is under way.
const errRestoring = refusal("another restore is under way; try again when it is done")

// restoreUnderway is scheduler.restored during a restore.
const restoreUnderway = math.MaxInt64

// A restoreOption says how a restore differs from storing the jobs of a file.
type restoreOption struct {
	DryRun bool              // only check the file
	Prune  map[string]string // also delete the jobs with this metadata that are not in the file; nil: none
}

// A badFile has a line for each bad job in a file.
type badFile []string

func (b badFile) Error() string { return strings.Join(b, "\n") }

const badJobsMax = 100 // that are named

// restore creates or updates jobs, all of them or none. They arrive one by one and are staged in slices, which nobody
// sees, until the last command makes them all visible. A restore that breaks off at any point, or with its leader,
// leaves only staged rows, which are trimmed later. There is one restore at a time because each may occupy the writer
// for seconds at its end.
func (s *scheduler) restore(ctx context.Context, r request, jobs iter.Seq2[job, error], opt restoreOption) (
	done restored, err error) {
	if last := s.restored.Load(); last == restoreUnderway || !s.restored.CompareAndSwap(last, restoreUnderway) {
		return restored{}, errRestoring
	}
	defer func() { s.restored.Store(s.now().UnixNano()) }()
	slice, size, sum := staging{}, 0, sha256.New()
	var bad badFile
	names, children := map[string]bool{}, []job{}
	for j, err := range jobs {
		done.Jobs++
		now := s.now().UnixNano()
		var wrong badInput
		switch {
		case err != nil && !errors.As(err, &wrong):
			return restored{}, err
		case err == nil || j.Name != "":
			err = both(err, s.validate(&j, now))
		}
		if err == nil && names[j.Name] {
			err = errors.New("the name stands more than once in the file")
		}
		if err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", cmp.Or(j.Name, fmt.Sprintf("job %d of the file", done.Jobs)), err))
		}
		if names[j.Name] = true; j.ParentJob != "" {
			children = append(children, job{Name: j.Name, ParentJob: j.ParentJob})
		}
		if len(bad) == badJobsMax {
			return restored{}, append(bad, "there may be more")
		}
		if len(bad) > 0 || opt.DryRun {
			continue
		}
		doc, err := json.Marshal(j)
		if err != nil {
			return restored{}, err
		}
		if size+len(doc) > sliceBytes || len(slice.Jobs) == sliceRows {
			if err := s.stage(ctx, r, slice, &done); err != nil {
				return restored{}, err
			}
			slice, size = staging{}, 0
		}
		slice.Jobs = append(slice.Jobs, stagedJob{Job: j, Next: j.firstTick(s.timezone(), now, 0)})
		size += len(doc)
		sum.Write(doc)
	}
	for _, j := range children {
		if !names[j.ParentJob] && len(bad) < badJobsMax {
			if _, err := s.store.job(j.ParentJob); errors.Is(err, errNoJob) {
				bad = append(bad, fmt.Sprintf("%s: %v", j.Name, errParent))
			} else if err != nil {
				return restored{}, err
			}
		}
	}
	switch {
	case bad != nil:
		return restored{}, bad
	case done.Jobs == 0 || opt.DryRun:
		return done, nil
	}
	if err := s.stage(ctx, r, slice, &done); err != nil {
		return restored{}, err
	}
	return done, s.showRestored(ctx, r, done, opt.Prune, hex.EncodeToString(sum.Sum(nil)))
}

// stage proposes one slice of a restore. The first one gives the restore its id.
func (s *scheduler) stage(ctx context.Context, r request, slice staging, done *restored) error {
	slice.Restore = done.ID
	res, err := s.propose(ctx, &command{Actor: r.Actor, Now: s.now().UnixNano(), Stage: &slice})
	done.ID = cmp.Or(done.ID, int64(res.Index))
	return err
}

// showRestored makes the staged jobs visible. sum is the hash of the file.
func (s *scheduler) showRestored(ctx context.Context, r request, done restored, prune map[string]string,
	sum string) error {
	_, res, err := s.attempt(ctx, r, actionRestore, func(c *command) (*jobRow, error) {
		c.Submit, c.Restore, c.Answer = true, &restoring{done.ID, done.Jobs, prune}, sum
		return nil, s.moveStaged(ctx, r, done, c.Now)
	})
	if err == nil && res.repeated() && res.Answer != "" && res.Answer != sum {
		return errKeyUsed
	}
	// To move many jobs, at about 10 µs each, keeps the writer for longer than an election timeout, and leadership may
	// be lost meanwhile: the request is on record if it was done nevertheless.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	for errors.Is(err, errUnknown) {
		if _, ok, err := s.store.request(r.ID); ok || err != nil {
			return err
		}
		if pause(ctx, recordPause) != nil {
			return err
		}
	}
	return err
}

// moveStaged computes anew the ticks that fell due while their jobs were staged: a job has none before it is visible.
func (s *scheduler) moveStaged(ctx context.Context, r request, done restored, now int64) error {
	for after := int64(0); ; {
		list, err := s.store.stagedDue(done.ID, after, now)
		if err != nil || len(list) == 0 {
			return err
		}
		after = list[len(list)-1].ID
		moved := make([]stagedJob, len(list))
		for i, st := range list {
			moved[i] = stagedJob{ID: st.ID, Next: st.Job.firstTick(s.timezone(), now, st.Fired)}
		}
		if err := s.stage(ctx, r, staging{Moved: moved}, &done); err != nil {
			return err
		}
	}
}

// toggle enables or disables a job, and returns it as it is then. If disabled is nil, the job becomes what it is not.
func (s *scheduler) toggle(ctx context.Context, r request, name string, disabled *bool) (*jobRow, applied, error) {
	return s.attempt(ctx, r, actionToggle, func(c *command) (*jobRow, error) {
		base, err := s.store.job(name)
		if err != nil {
			return nil, err
		}
		j := base.job
		if j.Disabled = !j.Disabled; disabled != nil {
			j.Disabled = *disabled
		}
		return s.putOver(*base, j, c), nil
	})
}

// delete removes a job and returns it as it was.
func (s *scheduler) delete(ctx context.Context, r request, name string) (*jobRow, applied, error) {
	return s.attempt(ctx, r, actionDelete, func(c *command) (row *jobRow, err error) {
		if row, err = s.store.job(name); err == nil {
			c.Delete = &row.version
		}
		return row, err
	})
}

// deleteExecutions deletes the finished executions of a job, resets its counters and returns it as it is then.
func (s *scheduler) deleteExecutions(ctx context.Context, r request, name string) (*jobRow, applied, error) {
	for {
		_, res, err := s.attempt(ctx, r, actionDeleteExecutions, func(c *command) (row *jobRow, err error) {
			if row, err = s.store.job(name); err == nil {
				row.dropRecord()
				c.DeleteExecutions = &row.version
			}
			return row, err
		})
		if err != nil || res.repeated() && res.Answer != "" {
			return nil, res, err
		}
		if !res.More {
			row, err := s.store.job(name)
			return row, res, err
		}
	}
}

// setPaused refuses or allows that jobs are created and updated.
func (s *scheduler) setPaused(ctx context.Context, r request, paused bool) error {
	action := map[bool]string{true: actionPause, false: actionUnpause}[paused]
	_, _, err := s.attempt(ctx, r, action, func(c *command) (*jobRow, error) {
		c.SetPaused = &paused
		return nil, nil
	})
	return err
}

// setRule stores a rule, or takes it back if it is nil.
func (s *scheduler) setRule(ctx context.Context, r request, action, kind, name string, set *rule) error {
	text := jsonText(set)
	_, res, err := s.attempt(ctx, r, action, func(c *command) (*jobRow, error) {
		c.SetRule, c.Answer = &ruleSet{Kind: kind, Name: name}, text
		if set != nil {
			at := *set
			at.Since = timeOf(c.Now)
			c.SetRule.Rule = &at
		}
		return nil, nil
	})
	if err == nil && res.repeated() && res.Answer != "" && res.Answer != text {
		err = errKeyUsed
	}
	return err
}

// toggleAll enables or disables the jobs with such metadata, all of them or none, and returns the names of those that
// were not so before.
func (s *scheduler) toggleAll(ctx context.Context, r request, metadata map[string]string, disabled bool) (
	names []string, err error) {
	_, res, err := s.attempt(ctx, r, actionToggle, func(c *command) (*jobRow, error) {
		names = []string{}
		ids, _, err := s.store.jobIDs(jobFilter{Metadata: metadata}, 0, math.MaxInt)
		if err != nil {
			return nil, err
		}
		rows, err := s.store.jobsByID(ids)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row.Disabled == disabled {
				continue
			}
			j := row.job
			j.Disabled = disabled
			s.putOver(*row, j, c)
			names = append(names, j.Name)
		}
		c.Answer = jsonText(names)
		return nil, nil
	})
	if err == nil && res.repeated() && res.Answer != "" {
		err = json.Unmarshal([]byte(res.Answer), &names)
	}
	return names, err
}

// putPolicy creates or updates a policy, unless it is built in.
func (s *scheduler) putPolicy(ctx context.Context, r request, p policy) error {
	if _, ok := builtInPolicy(p.Name); ok {
		return errBuiltIn
	}
	_, res, err := s.attempt(ctx, r, actionPutPolicy, func(c *command) (*jobRow, error) {
		c.PutPolicy, c.Answer = &p, p.Rules
		return nil, nil
	})
	if err == nil && res.repeated() && res.Answer != "" && res.Answer != p.Rules {
		err = errKeyUsed
	}
	return err
}

// deletePolicy removes a policy and returns it as it was.
func (s *scheduler) deletePolicy(ctx context.Context, r request, name string) (p policy, err error) {
	if _, ok := builtInPolicy(name); ok {
		return policy{}, errBuiltIn
	}
	_, res, err := s.attempt(ctx, r, actionDeletePolicy, func(c *command) (_ *jobRow, err error) {
		p, err = s.store.policy(name)
		c.DeletePolicy, c.Answer = name, p.Rules
		return nil, err
	})
	if err == nil && res.repeated() && res.Answer != "" {
		p = policy{Name: name, Rules: res.Answer}
	}
	return p, err
}

// putToken stores a new token. first: only while there is no valid management token, else errManaged.
func (s *scheduler) putToken(ctx context.Context, r request, t token, first bool) error {
	for _, name := range t.Policies {
		if _, err := s.store.policy(name); err != nil {
			return fmt.Errorf("policy %q: %w", name, err)
		}
	}
	action := map[bool]string{true: actionBootstrap, false: actionCreateToken}[first]
	_, res, err := s.attempt(ctx, r, action, func(c *command) (*jobRow, error) {
		c.PutToken = &tokenPut{t, first}
		return nil, nil
	})
	if err == nil && res.repeated() {
		err = errTokenShown
	}
	return err
}

// errTokenShown is returned for a token that was created before with the same key: only its hash is stored.
var errTokenShown = errors.New("the token was made before, and its secret shown then; " +
	"make another, with another Idempotency-Key")

// deleteToken removes a token and returns it as it was.
func (s *scheduler) deleteToken(ctx context.Context, r request, accessor string) (t token, err error) {
	_, _, err = s.attempt(ctx, r, actionDeleteToken, func(c *command) (_ *jobRow, err error) {
		t, err = s.store.token(accessor)
		c.DeleteToken = accessor
		return nil, err
	})
	return t, err
}

// kill ends an execution at the request of a client; no retry and no child follows. The execution's node is told to end
// it. If the node does not know it or does not respond, the execution is closed. kill does not wait for the process to
// end.
func (s *scheduler) kill(ctx context.Context, r request, e executionRow) error {
	if e.Finished != 0 {
		return errFinished
	}
	now := s.now().UnixNano()
	why := fmt.Sprintf("killed by %s at %s", r.Actor, timeOf(now).Format(time.RFC3339))
	object := audited{Action: actionKill, Job: e.JobName, Object: executionName(e.ID, e.Node)}
	err := errors.New("the process of the node that it was given to is gone")
	if slices.ContainsFunc(s.cluster.nodes(), func(n node) bool { return n.target() == e.target() }) {
		err = s.sendKill(e.Node, kill{Execution: e.ID, Why: why})
	}
	switch {
	case err == nil:
		return s.note(ctx, r, object)
	case errors.Is(err, errNotLeader), errors.Is(err, errStaleTerm):
		return errNotLeader
	}
	s.mustAsk(e.Node) // it may come back and still run it
	s.log.Warn("an execution is closed because its node did not take the kill", "execution", object.Object, "err", err)
	closed := s.moment().closing(e, outcomeKilled, "%s; its node did not end it: %v\n", why, err)
	if err := s.note(ctx, r, object, closed); err != nil {
		return err
	}
	moved, err := s.store.execution(e.ID)
	switch {
	case errors.Is(err, errNoExecution):
		return nil
	case err != nil || moved.Finished != 0 || moved.incarnation == e.incarnation:
		return err
	}
	r.ID = "moved run of " + r.ID // which happens once at most
	return s.kill(ctx, r, moved)
}

// note adds to the audit trail what was done to an object, with the executions that were closed by it.
func (s *scheduler) note(ctx context.Context, r request, object audited, closed ...report) error {
	_, _, err := s.attempt(ctx, r, object.Action, func(c *command) (*jobRow, error) {
		c.Audit.Job, c.Audit.Object, c.Finish = object.Job, object.Object, closed
		return nil, nil
	})
	return err
}

// errFinished refuses to kill an execution that has finished.
const errFinished = refusal("the execution has finished")

// runNow starts a job at the request of a client and returns the job as it was before. res.Refused says why nothing was
// started; otherwise res.Started has the executions, or none if the run waits until it may start.
func (s *scheduler) runNow(ctx context.Context, r request, name string) (*jobRow, applied, error) {
	row, res, err := s.attempt(ctx, r, actionRun, func(c *command) (*jobRow, error) {
		row, err := s.store.job(name)
		if err != nil {
			return nil, err
		}
		for _, k := range sortedKeys(r.Params) {
			if _, ok := row.Params[k]; !ok && row.Params != nil {
				takes := strings.Join(sortedKeys(row.Params), ", ")
				return nil, fmt.Errorf("params.%.40s: %w; it takes %s", k, errNoParam, takes)
			}
		}
		m := s.moment()
		d := decision{Job: row.version.ID, Rev: row.version.Rev, Params: r.Params, Force: r.Force}
		d.Targets = m.pick(row.Tags)
		switch {
		case row.Disabled && !r.Force:
			return nil, errJobDisabled
		case m.lacks(row.Tags, d.Targets):
			return nil, errUndecided
		case len(d.Targets) == 0:
			return nil, errNoNode
		}
		c.Consume, c.Limits = []decision{d}, m.limits(d.Targets)
		return row, nil
	})
	if err == nil && res.repeated() && res.Refused == "" {
		e, err := s.store.execution(key(res.First, 0))
		if err == nil && !maps.Equal(e.Params, r.Params) {
			return nil, res, errKeyUsed
		}
	}
	return row, res, err
}

// errNoParam refuses a run with a parameter that its job does not name.
const errNoParam = refusal("the job takes no such parameter")

// errNoNode refuses to run a job now that no live node can run.
const errNoNode = refusal("no live node has the tags that the job asks for; " +
	"change its tags, or start or undrain such a node")

// Limits of schedules.
const (
	// scheduleYears is how far ahead six fields are searched: to the end of the fifth year after the one asked
	// about, as upstream. A schedule without a tick by then (31 June) is taken to have none.
	scheduleYears = 5

	// scheduleBytesMax bounds the text of a schedule. All values of all six fields, listed one by one, take 540.
	scheduleBytesMax = 1024

	// calendarsMax bounds the cache of parsed fields: 5 MB in ordinary use, 40 MB at worst. More different
	// schedules than that work too, but are parsed again and again, in 30 µs each.
	calendarsMax = 16384
)

const oneDay = 24 * time.Hour

// A schedule says when a job is due: its ticks. The text is upstream's dialect: six fields (second, minute, hour,
// day of month, month, day of week) or a descriptor, read on the wall clock of a zone. A wall time that a change of
// offset leaves out has no tick; one that it repeats has two.
//
// A schedule is immutable and comparable; equal six fields in equal zones share one calendar. At most one of its
// parts is set. The zero value (@manually) has no ticks.
//
// Differs: upstream loses or repeats ticks where a zone moves by half an hour or at midnight, and reads descriptors
// in its own zone instead of the job's.
type schedule struct {
	calendar *calendar // of six fields
	seconds  int64     // of @every: the period
	at       time.Time // of @at and @after: the only tick, in UTC

	window time.Duration // of @after: how late that may run
}

// descriptors are names for six fields.
var descriptors = map[string]string{
	"@yearly":   "0 0 0 1 1 *",
	"@annually": "0 0 0 1 1 *",
	"@monthly":  "0 0 0 1 * *",
	"@weekly":   "0 0 0 * * 0",
	"@daily":    "0 0 0 * * *",
	"@midnight": "0 0 0 * * *",
	"@hourly":   "0 0 * * * *",
	"@minutely": "0 * * * * *",
}

// parseSchedule reads spec for the job called name, which decides what a `~` stands for. A CRON_TZ= or TZ= before
// spec overrides zone, an IANA name. An error says in one clause what is wrong, in which field, and what would be
// right; it is fit to follow "schedule: ".
func parseSchedule(spec, zone, name string) (schedule, error) {
	if len(spec) > scheduleBytesMax {
		return schedule{}, fmt.Errorf("%d bytes long, want at most %d", len(spec), scheduleBytesMax)
	}
	spec, zone, err := cutZone(spec, zone)
	if err != nil {
		return schedule{}, err
	}
	loc, err := loadZone(zone)
	if err != nil {
		return schedule{}, err
	}
	switch kind, text, _ := strings.Cut(spec, " "); {
	case spec == "@manually":
		return schedule{}, nil
	case kind == "@every":
		period, err := time.ParseDuration(text)
		if err != nil {
			return schedule{}, fmt.Errorf("@every %q is no duration, want one such as 1h30m", text)
		}
		return schedule{seconds: max(1, int64(period/time.Second))}, nil // whatever its sign, as upstream
	case kind == "@at":
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return schedule{}, fmt.Errorf("@at %q is no time, want one such as 2030-01-31T12:00:00Z", text)
		}
		return schedule{at: at.UTC()}, nil
	case kind == "@after":
		return parseAfter(text)
	case strings.HasPrefix(spec, "@"):
		fields, ok := descriptors[spec]
		if !ok {
			return schedule{}, fmt.Errorf("unknown descriptor %q, want @yearly, @annually, @monthly, @weekly, @daily, "+
				"@midnight, @hourly, @minutely, @manually, @every <duration>, @at <time> or @after <time> <PT2H", spec)
		}
		spec = fields
	}
	c, err := parseCalendar(spec, loc, name)
	return schedule{calendar: c}, err
}

// cutZone returns spec without the zone before it, and that zone, or else the given one. An empty zone before it
// is UTC, and none may stand before @at and @after, as upstream.
func cutZone(spec, zone string) (rest, ownZone string, err error) {
	prefixed, ok := strings.CutPrefix(strings.TrimPrefix(spec, "CRON_"), "TZ=")
	if !ok {
		return spec, zone, nil
	}
	ownZone, rest, _ = strings.Cut(prefixed, " ")
	rest = strings.TrimSpace(rest)
	switch {
	case rest == "":
		return "", "", fmt.Errorf("nothing after the zone in %q, want six fields or a descriptor", spec)
	case strings.HasPrefix(rest, "@at"), strings.HasPrefix(rest, "@after"):
		return "", "", fmt.Errorf("a zone before the time in %q, want it in the time itself", spec)
	}
	return rest, cmp.Or(ownZone, "UTC"), nil
}

// zones holds the zones loaded so far, a *time.Location by name. Only names of the database get in.
var zones sync.Map

// loadZone returns the zone of an IANA name. It refuses "Local", which is another zone on every node, and other than
// the plainest spelling of a name, of which a file system accepts any number.
func loadZone(name string) (*time.Location, error) {
	if loc, ok := zones.Load(name); ok {
		return loc.(*time.Location), nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" || path.Clean(name) != name {
		return nil, fmt.Errorf("unknown time zone %q, want an IANA name such as \"Europe/Berlin\"", name)
	}
	shared, _ := zones.LoadOrStore(name, loc)
	return shared.(*time.Location), nil
}

// periodPattern is an ISO 8601 duration of fixed units; < may stand before it, as upstream writes it.
var periodPattern = regexp.MustCompile(
	strings.ReplaceAll(`^<?P(?:#W)?(?:#D)?(?:T(?:#H)?(?:#M)?(?:#S)?)?$`, "#", `(\d{1,9})`))

// parseAfter reads a time and how late after it the schedule may run.
func parseAfter(text string) (schedule, error) {
	start, period, _ := strings.Cut(text, " ")
	at, err := time.Parse(time.RFC3339, start)
	s := schedule{at: at.UTC()}
	if parts := periodPattern.FindStringSubmatch(period); parts != nil {
		for i, unit := range []time.Duration{7 * oneDay, oneDay, time.Hour, time.Minute, time.Second} {
			n, _ := strconv.ParseInt(parts[i+1], 10, 64)
			s.window += time.Duration(min(n, int64(durationMax/unit)+1)) * unit
		}
	}
	if err != nil || s.window < time.Second || s.window > durationMax {
		return schedule{}, fmt.Errorf("@after %q is no time and how late it may run, at most a year, "+
			"want one such as 2030-01-31T12:00:00Z <PT2H", text)
	}
	return s, nil
}

// next returns the first tick after a time, in UTC, or the zero time if there is none. The ticks of @every have no
// other anchor than after, which is cut to a whole second: a caller that passes the last tick keeps the phase.
func (s schedule) next(after time.Time) time.Time {
	switch {
	case s.calendar != nil:
		return s.calendar.next(after)
	case s.seconds > 0:
		return time.Unix(after.Unix()+s.seconds, 0).UTC()
	case s.at.After(after):
		return s.at
	}
	return time.Time{}
}

// once reports whether the schedule has a single tick.
func (s schedule) once() bool { return !s.at.IsZero() }

// first returns the first tick of a job that is put at now and whose window opens at start; the zero start is always
// open. The tick lies after now and not before start. An @every whose window is yet to open begins with its opening.
func (s schedule) first(now, start time.Time) time.Time {
	switch {
	case !start.After(now):
		return s.next(now)
	case s.seconds > 0:
		return secondAfter(start.Add(-1))
	}
	return s.next(start.Add(-1))
}

// secondAfter returns the first whole second after t, in UTC.
func secondAfter(t time.Time) time.Time { return time.Unix(t.Unix()+1, 0).UTC() }

// count returns the number of ticks after from up to and including to, and the last of them, the zero time if there
// are none. Ticks of @every count from from, which has to be one. It takes a step a day, not a step a tick.
func (s schedule) count(from, to time.Time) (n int64, last time.Time) {
	switch {
	case !to.After(from):
		return 0, time.Time{}
	case s.calendar != nil:
		return s.calendar.count(from, to)
	case s.seconds > 0:
		if n = (to.Unix() - from.Unix()) / s.seconds; n > 0 {
			last = time.Unix(from.Unix()+n*s.seconds, 0).UTC()
		}
		return n, last
	case s.at.After(from) && !s.at.After(to):
		return 1, s.at
	}
	return 0, time.Time{}
}

// zone returns the zone that the schedule brings with it, else that of its job.
func (s schedule) zone(job *time.Location) *time.Location {
	if s.calendar != nil {
		return s.calendar.zone
	}
	return job
}

// words says in English when the schedule falls due, for the job's zone.
func (s schedule) words(zone *time.Location) string {
	switch {
	case s.calendar != nil:
		return s.calendar.words()
	case s.once():
		text := s.at.In(zone).Format("once, on 2 January 2006 at 15:04:05, ") + zone.String()
		if s.window > 0 {
			text += fmt.Sprintf(", or up to %s later", s.window)
		}
		return text
	case s.seconds == 0:
		return "never by itself"
	case s.seconds%3600 == 0:
		return "every " + amount(int(s.seconds/3600), "hour")
	case s.seconds%60 == 0:
		return "every " + amount(int(s.seconds/60), "minute")
	}
	return "every " + amount(int(s.seconds), "second")
}

func amount(n int, unit string) string {
	if n == 1 {
		return unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// The fields of a calendar, in the order of their text.
const (
	secondField = iota
	minuteField
	hourField
	dayField
	monthField
	weekdayField
	fieldCount
)

// A calendarField describes what one of the six fields may say.
type calendarField struct {
	name     string
	min, max int
	hashed   int      // how many values, from min, a `~` chooses from: days stop at 28, which every month has
	words    []string // names of the values from min on
}

var calendarFields = [fieldCount]calendarField{
	{name: "second", min: 0, max: 59, hashed: 60},
	{name: "minute", min: 0, max: 59, hashed: 60},
	{name: "hour", min: 0, max: 23, hashed: 24},
	{name: "day of month", min: 1, max: 31, hashed: 28},
	{name: "month", min: 1, max: 12, hashed: 12,
		words: []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{name: "day of week", min: 0, max: 6, hashed: 7,
		words: []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// A calendar is six parsed fields in their zone. It is immutable.
type calendar struct {
	zone      *time.Location
	values    [fieldCount]valueSet // none is empty
	eitherDay bool                 // neither day field has a star: a day has to match one of them, not both
}

// calendarKey is what a calendar is parsed from, each `~` already replaced.
type calendarKey struct {
	zone *time.Location
	text [fieldCount]string
}

// calendars holds the calendars parsed so far, so that jobs with the same schedule share one; to that end mu is held
// while one is parsed. When it is full it is emptied: what is in use lives on with its jobs.
var calendars = struct {
	mu    sync.Mutex
	byKey map[calendarKey]*calendar // guarded by mu
}{byKey: map[calendarKey]*calendar{}}

func parseCalendar(spec string, zone *time.Location, name string) (*calendar, error) {
	texts := strings.Fields(spec)
	if len(texts) != fieldCount {
		err := fmt.Errorf("%d fields in %q, want six: second, minute, hour, day of month, month, day of week",
			len(texts), spec)
		if len(texts) == fieldCount-1 {
			err = fmt.Errorf("%w; cron's five become \"0 %s\"", err, spec)
		}
		return nil, err
	}
	key := calendarKey{zone: zone}
	for i, f := range calendarFields {
		key.text[i] = strings.ReplaceAll(texts[i], "~", strconv.Itoa(f.hash(name)))
	}
	calendars.mu.Lock()
	defer calendars.mu.Unlock()
	if c, ok := calendars.byKey[key]; ok {
		return c, nil
	}
	c, err := newCalendar(key)
	if err != nil {
		return nil, err
	}
	if len(calendars.byKey) == calendarsMax {
		clear(calendars.byKey)
	}
	calendars.byKey[key] = c
	return c, nil
}

// hash returns the value of `~` for a job, the same on every node and in every release, and upstream.
func (f calendarField) hash(name string) int {
	sum := 0
	for _, r := range name {
		sum += int(r)
	}
	return f.min + sum%f.hashed
}

// newCalendar asks gronx which values of each field match.
func newCalendar(key calendarKey) (*calendar, error) {
	c := &calendar{zone: key.zone}
	var stars [fieldCount]bool
	for i, f := range calendarFields {
		segment, star, err := f.parse(key.text[i])
		for v := f.min; err == nil && v <= f.max; v++ {
			at := [fieldCount]int{dayField: 1, monthField: 1}
			at[i] = v // January 2023 has 31 days and began on a Sunday
			var checker gronx.SegmentChecker
			checker.SetRef(time.Date(2023, time.Month(at[monthField]), at[dayField]+at[weekdayField],
				at[hourField], at[minuteField], at[secondField], 0, time.UTC))
			var due bool
			if due, err = checker.CheckDue(segment, i); due {
				c.values[i] |= 1 << v
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%s %w", f.name, err)
		}
		stars[i] = star
	}
	c.eitherDay = !stars[dayField] && !stars[weekdayField]
	return c, nil
}

// parse returns the field's list in the one form that gronx is asked about, and whether a star is in it. It is
// stricter than gronx, which has L, W, # and 7 for Sunday, and does not look beyond the first item that matches.
// Items of a list may be empty, as upstream. Differs: not all of them.
func (f calendarField) parse(text string) (segment string, star bool, err error) {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		canonical, itemStar, err := f.parseItem(item)
		if err != nil {
			return "", false, fmt.Errorf("%q: %w", item, err)
		}
		items, star = append(items, canonical), star || itemStar
	}
	if len(items) == 0 {
		return "", false, fmt.Errorf("%q: no value in the list, want %s", text, f.allowed())
	}
	return strings.Join(items, ","), star, nil
}

// parseItem reads one item, a value, low-high, or `*` or `?` for all values, with or without /step. A single value with
// a step goes on to the field's end. A star may have a value after a hyphen, which means nothing, as upstream; with a
// step it is no star, unless that is 1. The item is returned as low-high/step, in numbers.
func (f calendarField) parseItem(item string) (canonical string, star bool, err error) {
	span, stepText, stepped := strings.Cut(item, "/")
	lowText, highText, ranged := strings.Cut(span, "-")
	low, high, step := f.min, f.max, 1
	if star = lowText == "*" || lowText == "?"; !star {
		if low, err = f.value(lowText); !stepped {
			high = low
		}
	}
	if ranged && err == nil {
		if high, err = f.value(highText); star {
			high = f.max
		}
	}
	if stepped && err == nil {
		if step, err = strconv.Atoi(stepText); err != nil || step < 1 {
			err = fmt.Errorf("%q is no step, want a whole number of at least 1", stepText)
		}
	}
	if err == nil && high < low {
		err = errors.New("the range runs backwards, want the lower value first")
	}
	return fmt.Sprintf("%d-%d/%d", low, high, step), star && step == 1, err
}

// value reads one value, a number or a name in upper or lower case.
func (f calendarField) value(text string) (int, error) {
	if i := slices.Index(f.words, strings.ToLower(text)); i >= 0 {
		return f.min + i, nil
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < f.min || v > f.max {
		return 0, fmt.Errorf("%q is not allowed, want %s", text, f.allowed())
	}
	return v, nil
}

// allowed says which values the field has.
func (f calendarField) allowed() string {
	if len(f.words) == 0 {
		return fmt.Sprintf("%d to %d", f.min, f.max)
	}
	return fmt.Sprintf("%d to %d or %s to %s", f.min, f.max, f.words[0], f.words[len(f.words)-1])
}

// next and count are those of a schedule.
func (c *calendar) next(after time.Time) time.Time {
	from := secondAfter(after)
	limit := time.Date(from.Year()+scheduleYears+1, time.January, 1, 0, 0, 0, 0, time.UTC)
	for part := range c.parts(from, limit) {
		return part.midnight.Add(c.tick(part.first))
	}
	return time.Time{}
}

func (c *calendar) count(from, to time.Time) (n int64, last time.Time) {
	for part := range c.parts(secondAfter(from), secondAfter(to)) {
		n += int64(part.end - part.first)
		last = part.midnight.Add(c.tick(part.end - 1))
	}
	return n, last
}

// A dayPart is one or more ticks of one day, from number first up to number end of that day. The day is counted as
// if the offset of the part had held since its midnight.
type dayPart struct {
	midnight   time.Time // in UTC
	first, end int
}

// parts yields the ticks from a time up to but excluding a limit, both whole seconds, in order. Every stretch of
// constant offset is searched by itself, on the wall clock that this offset makes: thus a gap has no ticks and an
// overlap has them twice.
func (c *calendar) parts(from, limit time.Time) iter.Seq[dayPart] {
	return func(yield func(dayPart) bool) {
		for start := from; start.Before(limit); {
			offset, end := stretch(start.In(c.zone), limit)
			wallStart, wallEnd := start.Add(offset), end.Add(offset)
			for day := range c.days(wallStart, wallEnd) {
				part := dayPart{day.Add(-offset), c.ticksBefore(wallStart.Sub(day)), c.ticksBefore(wallEnd.Sub(day))}
				if part.first < part.end && !yield(part) {
					return
				}
			}
			start = end
		}
	}
}

// stretch returns the offset from UTC at t, in the zone of t, and a later time, at most limit, up to which it holds.
func stretch(t, limit time.Time) (offset time.Duration, end time.Time) {
	_, seconds := t.Zone()
	_, end = t.ZoneBounds()
	if !end.IsZero() && !end.After(t) {
		// On the last UTC day of a leap year ZoneBounds may return the beginning of that day (golang/go#81583).
		end = t.Truncate(oneDay).Add(oneDay)
	}
	if end.IsZero() || end.After(limit) {
		end = limit
	}
	return time.Duration(seconds) * time.Second, end.UTC()
}

// days yields the midnights of the matching days that have a part in [from, limit). All are wall times set in UTC.
func (c *calendar) days(from, limit time.Time) iter.Seq[time.Time] {
	return func(yield func(time.Time) bool) {
		for day := from.Truncate(oneDay); day.Before(limit); {
			year, month, date := day.Date()
			if !c.values[monthField].has(int(month)) {
				day = time.Date(year, month+1, 1, 0, 0, 0, 0, time.UTC)
				continue
			}
			if c.matchesDay(date, day.Weekday()) && !yield(day) {
				return
			}
			day = day.Add(oneDay)
		}
	}
}

func (c *calendar) matchesDay(date int, weekday time.Weekday) bool {
	byDate, byWeekday := c.values[dayField].has(date), c.values[weekdayField].has(int(weekday))
	if c.eitherDay {
		return byDate || byWeekday
	}
	return byDate && byWeekday
}

// ticksBefore returns how many ticks of a matching day come before a time since its midnight, which may lie outside
// the day. Ticks of a day are numbered from 0 in order; tick is the inverse.
func (c *calendar) ticksBefore(since time.Duration) int {
	at := int(min(max(since, 0), oneDay) / time.Second)
	hour, minute, second := at/3600, at/60%60, at%60
	hours, minutes, seconds := c.values[hourField], c.values[minuteField], c.values[secondField]

	n := hours.below(hour) * minutes.size() * seconds.size()
	if hours.has(hour) {
		n += minutes.below(minute) * seconds.size()
		if minutes.has(minute) {
			n += seconds.below(second)
		}
	}
	return n
}

// tick returns the time since midnight of a matching day's tick number n.
func (c *calendar) tick(n int) time.Duration {
	hours, minutes, seconds := c.values[hourField], c.values[minuteField], c.values[secondField]
	second := seconds.nth(n % seconds.size())
	n /= seconds.size()
	minute := minutes.nth(n % minutes.size())
	hour := hours.nth(n / minutes.size())
	return time.Duration(hour*3600+minute*60+second) * time.Second
}

// clockTimesMax is how many times of a day are named one by one.
const clockTimesMax = 4

// words says when the calendar falls due, with its zone if that matters to more than minutes.
func (c *calendar) words() string {
	times, days := c.timeWords(), c.dayWords()
	if days == "" && c.values[hourField].size() <= clockTimesMax && strings.HasPrefix(times, "at ") {
		times = "every day " + times
	}
	if days != "" || !c.full(hourField) {
		days += ", " + c.zone.String()
	}
	return times + days
}

func (c *calendar) full(field int) bool {
	return c.values[field].size() == calendarFields[field].max-calendarFields[field].min+1
}

// timeWords names the times of a day: one by one if they are few, else from the smallest unit that matters to hours.
func (c *calendar) timeWords() string {
	hours, minutes, seconds := c.values[hourField], c.values[minuteField], c.values[secondField]
	if n := hours.size() * minutes.size() * seconds.size(); n <= clockTimesMax {
		var times []string
		for i := range n {
			at := time.Time{}.Add(c.tick(i))
			times = append(times, strings.TrimSuffix(at.Format("15:04:05"), ":00"))
		}
		return "at " + enumerate(times)
	}
	text, every := "", false // every: what was said last says that it comes again and again
	for i, f := range calendarFields[:dayField] {
		set, step := c.values[i], c.step(i)
		first, last := set.nth(0), set.nth(set.size()-1)
		switch {
		case text == "" && i < hourField && set == 1: // at 0
		case text == "" && step > 0:
			text, every = "every "+amount(step, f.name), true
			if first > 0 {
				text += fmt.Sprintf(" from %s %d on", f.name, first)
			}
		case i == hourField && last-first+1 == set.size() && !c.full(i):
			end := minutes.nth(minutes.size() - 1)
			text = fmt.Sprintf("%s from %02d:00 to %02d:%02d", cmp.Or(text, "every hour"), first, last, end)
		case text == "":
			text = "at " + f.name + " " + spans(set, f.min, f.max, strconv.Itoa)
		case step == 1 && every:
		case step == 1:
			text, every = text+" of every "+f.name, true
		default:
			text, every = text+" in "+f.name+" "+spans(set, f.min, f.max, strconv.Itoa), false
		}
	}
	return text
}

// step returns the distance of the values of a field if it is the same all around the clock, else 0.
func (c *calendar) step(field int) int {
	set, around := c.values[field], calendarFields[field].max+1
	step := around / set.size()
	for v := set.nth(0); v < around; v += step {
		if !set.has(v) || step*set.size() != around || set.size() == 1 {
			return 0
		}
	}
	return step
}

// dayWords names the days, "" for all of them.
func (c *calendar) dayWords() string {
	months := spans(c.values[monthField], 1, 12, func(v int) string { return time.Month(v).String() })
	dates := " on day " + spans(c.values[dayField], 1, 31, strconv.Itoa)
	fromMonday := c.values[weekdayField]>>1 | c.values[weekdayField]&1<<6 // Sunday, which is 0, comes last
	weekdays := " on " + spans(fromMonday, 0, 6, func(v int) string { return time.Weekday((v + 1) % 7).String() })
	text := ""
	switch anyDate, anyWeekday := c.full(dayField), c.full(weekdayField); {
	case !anyDate && !anyWeekday:
		text = dates + " of the month or" + weekdays
	case !anyWeekday && !c.eitherDay:
		text = weekdays
	case !anyDate && !c.eitherDay && c.full(monthField):
		return dates + " of every month"
	case !anyDate && !c.eitherDay:
		return dates + " of " + months
	}
	if !c.full(monthField) {
		text += " in " + months
	}
	return text
}

// spans writes the values of a set, three and more in a row by their ends.
func spans(set valueSet, low, high int, name func(int) string) string {
	var list []string
	for v := low; v <= high; v++ {
		end := v
		for end < high && set.has(end+1) {
			end++
		}
		if set.has(v) && end-v >= 2 {
			list, v = append(list, name(v)+" to "+name(end)), end
		} else if set.has(v) {
			list = append(list, name(v))
		}
	}
	return enumerate(list)
}

func enumerate(list []string) string {
	last := len(list) - 1
	if last == 0 {
		return list[0]
	}
	return strings.Join(list[:last], ", ") + " and " + list[last]
}

// A valueSet holds values from 0 to 63.
type valueSet uint64

func (s valueSet) has(v int) bool  { return s>>v&1 == 1 }
func (s valueSet) size() int       { return bits.OnesCount64(uint64(s)) }
func (s valueSet) below(v int) int { return (s & (1<<v - 1)).size() }

// nth returns the value of s that is larger than n others.
func (s valueSet) nth(n int) int {
	for range n {
		s &= s - 1
	}
	return bits.TrailingZeros64(uint64(s))
}
