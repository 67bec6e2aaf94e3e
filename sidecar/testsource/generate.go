//go:build ignore

// Generate makes the clips of package testsource anew. It needs ffmpeg with libx264, libvpx, libopus and drawtext, and
// the DejaVu fonts. Run it by go generate; give -v to see what ffmpeg says.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const (
	seconds   = 10
	rate      = 30       // frames per second
	keyFrames = rate / 2 // an IDR every half a second
)

// The picture: a dark background in slow motion; colour bars; markers that cross once in five seconds and once in one, to
// see every stutter; clock and frame counter; a flash with each beep.
var picture = strings.Join([]string{
	fmt.Sprintf("gradients=s=640x360:r=%d:d=%d:seed=7:nb_colors=4:speed=0.012:x0=60:y0=40:x1=600:y1=330"+
		":c0=0x101a26:c1=0x2c4a63:c2=0x131f2d:c3=0x3a2f55", rate, seconds),
	"format=yuv420p",
	bar(0, "white"), bar(1, "yellow"), bar(2, "cyan"), bar(3, "lime"),
	bar(4, "magenta"), bar(5, "red"), bar(6, "blue"), bar(7, "gray"),
	"drawbox=x=0:y=286:w=640:h=26:color=0x0d141c:t=fill",
	text("●", "DejaVu Sans", 40, "mod(n\\,150)*640/150-16", "278", "0x5bd0ff"),
	"drawbox=x=20:y=262:w=600:h=4:color=0x2b3a4b:t=fill",
	text("▲", "DejaVu Sans", 18, "20+mod(n\\,30)*600/30", "264", "0xffc857"),
	text("sidestream test source", "DejaVu Sans", 22, "24", "22", "0x9fb3c8"),
	text("%{pts\\:hms}", "DejaVu Sans Mono", 58, "-11", "84", "white"),
	text("frame %{eif\\:n\\:d\\:3} of 300", "DejaVu Sans Mono", 30, "24", "166", "0xffc857"),
	"drawbox=x=520:y=40:w=96:h=96:color=0x2b3a4b:t=4",
	"drawbox=x=528:y=48:w=80:h=80:color=white:t=fill:enable='lt(mod(n\\,30)\\,3)'",
}, ",")

// The sound: 100 ms at 880 Hz with each flash, an octave higher where the loop begins, faded in and out.
const sound = "aevalsrc=exprs='0.25*sin(2*PI*t*if(lt(t\\,1)\\,1760\\,880))" +
	"*lt(mod(t\\,1)\\,0.1)*min(1\\,min(mod(t\\,1)\\,0.1-mod(t\\,1))/0.005)':s=48000:c=mono"

func bar(i int, colour string) string {
	return fmt.Sprintf("drawbox=x=%d:y=320:w=80:h=40:color=%s@0.75:t=fill", 80*i, colour)
}

func text(s, font string, size int, x, y, colour string) string {
	return fmt.Sprintf("drawtext=font='%s':text='%s':fontsize=%d:x='%s':y='%s':fontcolor=%s", font, s, size, x, y, colour)
}

func main() {
	verbose := flag.Bool("v", false, "show what ffmpeg says")
	flag.Parse()

	keyed := []string{"-bitexact", "-threads", "1", "-g", fmt.Sprint(keyFrames), "-keyint_min", fmt.Sprint(keyFrames)}
	for _, clip := range [][]string{
		slices.Concat([]string{
			"-f", "lavfi", "-i", picture, "-c:v", "libx264", "-profile:v", "baseline", "-level", "3.1", "-preset", "veryslow",
			"-tune", "animation", "-bf", "0", "-b:v", "600k", "-maxrate", "700k", "-bufsize", "500k",
			"-x264-params", "scenecut=0:open-gop=0:repeat-headers=1:aud=0:rc-lookahead=30:sync-lookahead=0",
			"-bsf:v", "filter_units=remove_types=6", "-f", "h264",
		}, keyed, []string{"clip.h264"}),
		slices.Concat([]string{
			"-f", "lavfi", "-i", picture, "-c:v", "libvpx", "-b:v", "600k", "-maxrate", "700k", "-bufsize", "500k",
			"-quality", "good", "-cpu-used", "0", "-auto-alt-ref", "0", "-lag-in-frames", "0", "-error-resilient", "1",
			"-f", "ivf",
		}, keyed, []string{"clip.ivf"}),
		{
			"-f", "lavfi", "-i", sound, "-c:a", "libopus", "-b:a", "48k", "-vbr", "on", "-frame_duration", "20",
			"-application", "audio", "-frames:a", fmt.Sprint(seconds * 50), "-bitexact", "-f", "ogg", "clip.opus",
		},
	} {
		cmd := exec.Command("ffmpeg", append([]string{"-hide_banner", "-nostdin", "-y"}, clip...)...)
		out, err := cmd.CombinedOutput()
		if err != nil || *verbose {
			fmt.Fprintf(os.Stderr, "%s\n%s", cmd, out)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "generate:", err)
			os.Exit(1)
		}
	}
}
