"""Make the sample documents in data/inbox, the same bytes each time: `python data/make_inbox.py [FOLDER]`.

Every name, place, number and sentence in them was made up for this project. One page is about one
thing, so that a question has one right page.
"""

# ruff: noqa: E501 - a paragraph of prose is one line, so that it reads and changes as one

from __future__ import annotations

import io
import random
import sys
import zipfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import docx
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml.parser import parse_xml
from docx.shared import Pt
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageBreak, PageTemplate, Paragraph, Spacer, Table, TableStyle

INBOX = Path(__file__).parent / "inbox"
WRITTEN = datetime(2025, 3, 14, 9, 30, tzinfo=UTC)

# A line that starts with "# " is a chapter on a new page, "## " a section, "- " a list item,
# "| " a table row; every other line is a paragraph.

HANDBOOK = """
# 1 The machine and who may use it
The server called Heron stands in rack B4 of the basement machine room. It has one accelerator with 141 GB of memory, two processors of 48 cores, 768 GB of main memory and a scratch array of four NVMe drives. It was bought in the spring out of the shared equipment fund, and it belongs to no single group: the steering committee decides on the shares every quarter.
Members of the three founding groups have an account from their first day. Guests and students on placement ask their supervisor, who signs the access form and names an end date. An account that nobody has used for one hundred days is locked, not deleted, and its files stay where they are for a year.
Heron has two shifts. From 08:00 to 22:00 it serves a language model that the whole department uses through the chat page. From 22:00 until the early morning it belongs to batch work: indexing of documents, training of small models, and the long simulations of the plasma group. Whoever needs the accelerator during the day has to book it, which is described in chapter 2.
## 1.1 People
Questions about accounts go to Ilse Varga in room 2.17. Hardware faults, strange noises and water on the floor are reported to Tomasz Ødegaard by telephone, not by mail, because he does not read mail in the machine room. The chair of the steering committee is Professor Amara Nwosu.
# 2 Booking the accelerator by day
A booking takes the language model away from several hundred people, so there are rules for it. A booking lasts at most three hours, is made at least one working day ahead, and names the experiment and the person who can be reached by telephone while it runs. No group may hold more than two bookings in one week.
Bookings are entered in the calendar called heron-day. Ten minutes before a booking begins, the chat page shows a notice; at the full hour the model is unloaded, and the memory of the accelerator is free within a quarter of a minute. When the booking ends, the model is loaded again without anybody's help. If your program still holds memory at that time, it is asked to end, and after thirty seconds it is killed.
During examination weeks, which are the last two weeks of January and of June, there are no bookings by day at all. The same holds on open days, when visitors try the chat page in the foyer.
## 2.1 What to do when a booking is not needed any more
Delete it. Nobody will ask why. A booking that is left to expire without any use counts twice against the quota of the group, and after the third such case in a quarter the group loses its right to book until the next one.
# 3 Cooling, heat and the alarm
The machine room is cooled by two independent units on the north wall. Each of them alone keeps the room below 27 degrees while Heron works at full power in spring and autumn; on a hot day in July both are needed. The set point is 21 degrees, and nobody changes it except Tomasz Ødegaard.
| Air temperature at the inlet | What happens |
| below 24 degrees | normal work |
| 24 to 28 degrees | a message to the hardware telephone |
| 28 to 32 degrees | the power limit falls from 700 to 450 watts |
| above 32 degrees | batch work is stopped and the machine shuts down |
If the siren sounds, leave the room before you look for the cause. It announces either smoke or the release of the extinguishing gas, and the gas displaces the air that you breathe. The green key beside the door stops the release for as long as it is held down, but only during the first thirty seconds.
The filters of both cooling units are washed in March and in September. Unit 2 drips when its condensate pump is clogged; a yellow bucket stands under it for this reason, and whoever finds it more than half full empties it and writes the date on the sheet that hangs above.
# 4 Storage and what is kept
There are three places for files, and they differ in what happens to them. The home directory is small, 50 GB for each person, and is copied to the second building every night. The project directory has a quota that the steering committee sets, and is copied once a week, on Sunday. The scratch array is fast and large, but it is never copied, and files that have not been read for forty days are deleted from it without a message.
| Place | Size | Copied | Deleted |
| /home | 50 GB a person | every night | one year after the account ends |
| /projects | as granted | on Sundays | never without asking |
| /scratch | 30 TB together | never | after 40 days without use |
To get a deleted file back from home or projects, write to storage@heron.example with the full path and the date on which it was last all right. Restoring takes about two hours on a working day. Copies reach back ninety days; what was lost earlier than that is lost.
Model weights do not belong in a home directory. They lie in /projects/models, where each model is kept once for everybody, and where a list says who asked for it, under which licence it may be used, and what its checksum is.
# 5 The night shift
At 22:00 the chat page says good night, requests that are already running get two minutes to finish, and the language model is unloaded. The index of the library is built first, because people search it in the morning: new reports, theses and minutes are read, cut into pieces, and turned into vectors. On most nights this takes less than forty minutes.
After the index come the jobs of the queue, in the order of their priority. A job says how long it will run; a job that would not end before 07:30 is not started, and waits for the next night. This is why an honest estimate helps you: a job that claims eight hours when it needs two may wait until the weekend.
At 07:30 everything that still runs on the accelerator is stopped, whether it has finished or not, and the language model is loaded. Write your programs so that they save their state at least every twenty minutes. A program that is asked to stop receives the signal SIGTERM and has sixty seconds.
## 5.1 When a night goes wrong
The morning report goes to everybody who had a job in the queue. It lists what ran, what failed and what did not get its turn. If the index could not be built, the old one remains in use, and the language model is loaded all the same: the day always has priority over the night.
# 6 Power, noise and money
At full load Heron draws 2.3 kilowatts, of which the accelerator takes 700 watts. Idle with a loaded model it still draws 620 watts in total. The department pays for electricity out of its own budget, and the meter readings are posted outside room 2.17 on the first Monday of each month.
Industrial partners pay 4.20 euros for one hour of the accelerator. Members pay nothing, but their hours are counted, and the steering committee looks at the count when it sets the shares. Hours during the night count half.
An uninterruptible power supply carries the machine for eleven minutes. When the mains fail, batch work is stopped after one minute, and after six minutes the machine shuts down in good order. The diesel generator of the building does not feed the basement, which surprises every new colleague once.
Ear protection hangs beside the door. With both cooling units running, the room reaches 81 decibels, and nobody should stay in it for more than half an hour without.
# 7 When something breaks
Look at the status page first: it shows which mode the machine is in, and since when. If it says that a switch is under way, wait for three minutes. If it says failed, the cause stands beside it in one sentence, and in most cases the machine has already gone back to what it did before.
## 7.1 The chat page does not answer
Check whether it is night. Then check whether there is a booking. If neither is the case, send a message to the channel heron-help with the time at which you asked and the text of the error. Do not restart anything yourself, even if you could: two people who restart the same service at the same time have cost us a whole morning in May.
## 7.2 A disk in the scratch array fails
The array goes on working with one drive missing, more slowly. An orange light marks the drive. Spare drives of the right type lie in the grey cabinet, second shelf, in the antistatic boxes; Tomasz Ødegaard or his deputy exchanges them, and the rebuild takes about five hours. Until it is complete, do not start anything that writes more than a terabyte.
## 7.3 The accelerator reports memory errors
Single corrected errors are counted and ignored. An uncorrected error ends the program that met it; note the address that is printed and open a case with the manufacturer under contract number HX-20931. After two uncorrected errors in one week the card is exchanged.
"""

OBSERVATORY = """
# Foreword of the director
The Tarnvik Observatory looked at the sky on 212 of 365 nights in 2024, more than in any year since the new dome was built. We owe this to a dry autumn, but also to the people who repaired the shutter in three weeks when the manufacturer had announced four months. I thank all of them, and the farmers of the valley, who switch off their yard lights for us without being asked.
Two results will outlast the year. Our survey of faint comets found eleven new objects, among them one that comes from outside the solar system. And the long series of brightness measurements of the star Kappa Lyncis, which my predecessor began in 1961, finally showed why that star grows dim every nineteen years: it has a companion that is wrapped in a disk of dust.
We also had to say goodbye. Henrik Lindqvist, who looked after the mechanical workshop for thirty-four years, retired in October. The focus drive that he made in 1993 from a sewing machine still works.
Solveig Aune, director
# Weather and observing time
An observing night counts when the dome was open for at least two hours. There were 212 such nights. Clouds cost 109 nights, wind above 18 metres a second cost 21, and technical trouble cost the remaining 23, most of them while the shutter stood still in February.
| Month | Open nights | Hours | Lost to technical trouble |
| January | 14 | 121 | 0 |
| February | 6 | 44 | 17 |
| March | 17 | 128 | 2 |
| April | 19 | 117 | 0 |
| May | 18 | 71 | 0 |
| June | 12 | 29 | 0 |
| July | 15 | 41 | 1 |
| August | 21 | 106 | 0 |
| September | 25 | 178 | 0 |
| October | 27 | 231 | 1 |
| November | 22 | 214 | 2 |
| December | 16 | 167 | 0 |
The mean seeing, which is the apparent size of a star blurred by the air, was 1.1 seconds of arc, and it was best in the second half of October with 0.7. The sky over the summit had a brightness of 21.6 magnitudes per square second of arc at new moon; ten years ago it was 21.8. The new greenhouse at Fossdal is the largest part of the difference.
# The comet survey
The survey uses the 0.8 metre telescope during the dark half of each month. It photographs the same strip of sky three times in one night and looks for points that move. Since April the search is done by a program that was trained on our own archive; before that, two students compared the pictures by eye on every cloudy day.
Eleven comets were found in the year. The eighth of them, C/2024 T3, moves too fast to be bound to the sun: its orbit is a hyperbola with an eccentricity of 1.9. It is the third known visitor from another star. It passed its point closest to the sun on 2 November at a distance of 1.4 astronomical units, and telescopes on four continents followed it after our alert. Its gas contains an unusual amount of carbon monoxide and almost no water.
A false alarm taught us caution. In June the program announced forty comets in one night. They were reflections of a weather balloon. The program now asks for a fourth picture before it wakes anybody.
# Kappa Lyncis, a star with a curtain
Every nineteen years Kappa Lyncis loses a third of its light for about seven months. The eclipse of 2024 was the fourth that was measured from Tarnvik, and the first that was measured in the infrared. In visible light the star became redder as it faded; in the infrared it hardly faded at all. This is what a cloud of fine dust does, and what a dark star or a planet cannot do.
From the shape of the light curve Dr. Mirela Costin derived the size of the disk: about half the distance between the earth and the sun, tilted by eleven degrees, with a gap near its inner edge. The gap may have been swept by a planet of a few times the mass of the earth. The next eclipse begins in the summer of 2043, and the director asks that somebody put it in the calendar.
The photographic plates of the eclipses of 1967 and 1986 were scanned for this work. They had been kept in a cellar that was flooded in 1999, and nineteen of them could only be saved because they had been filed in the wrong cabinet.
# Instruments and workshop
The shutter of the main dome stuck half open on 4 February, in a snowstorm, because a guide rail had cracked at an old weld. The workshop closed the gap with a tarpaulin in the same night. A new rail was milled from a single piece in Skardal and mounted on 26 February.
The spectrograph received a new detector with 4096 by 4112 pixels. It is cooled to minus 105 degrees and reads out in nine seconds, where the old one took fifty. Its quantum efficiency at 400 nanometres is 92 percent. The fibre that feeds it was replaced at the same time, and the loss of light between telescope and detector fell from 61 to 44 percent.
The 0.8 metre mirror was coated with aluminium again in July. The last coating dated from 2016. It was done in the vacuum chamber of the technical university, and the transport of the mirror on a hay trailer, at walking pace, behind a police car, was the most photographed event of the year.
# Visitors, school classes and money
The public evenings had 5,940 visitors, and 71 school classes slept a night on the summit. The favourite object, by a vote among the children, was the double star Albireo, before Saturn. The planetarium tent travelled to nine villages that have no railway.
| | Thousand crowns |
| Grant of the ministry | 14,200 |
| Entrance fees and shop | 1,130 |
| Donations | 860 |
| Salaries | -10,450 |
| Instruments and repair | -3,720 |
| Electricity and heating | -1,290 |
| Left over | 730 |
The surplus goes into the reserve for the road, which has to be rebuilt above the tree line in 2026. The largest single donation, of 300,000 crowns, came from the estate of a retired ferry captain who had navigated by the stars and wished to give something back to them.
"""

INCIDENT = """
# Incident report 2024-31: the seed store warmed up
This report was written for the board of the Orrin Valley Seed Bank. It describes why cold store 3 warmed from minus 18 to plus 2 degrees between the evening of Friday 16 August and the morning of Sunday 18 August, what was damaged, and what has been changed since.
At 19:40 on Friday a thunderstorm cut the mains for four seconds. The compressors of stores 1 and 2 started again by themselves. The compressor of store 3 did not, because its controller had been replaced in May, and the new controller was delivered with the automatic restart switched off. Nobody had checked this setting, and the acceptance form has no line for it.
The temperature alarm worked, and sent a message at 22:15, when the store reached minus 12. The message went to a mobile telephone that had been returned in June by a colleague who left. It lay in a drawer, switched off. The second alarm, by mail, reached a mailbox that is read on working days.
On Sunday at 10:20 a volunteer who came to water the trial beds saw water under the door and called the curator, Dr. Pell. At 11:05 the compressor was running again, and by Monday evening the store was back at minus 18.
# What was damaged and what was not
Store 3 holds 2,314 accessions of grain, pulses and grasses. Dry seeds in sealed foil bear a short warm spell well: a sample of sixty accessions was tested for germination in September, and fifty-eight of them had not changed. The two that had are old barleys, whose rate fell from 71 to 52 and from 66 to 49 percent. They were sown at once and have given fresh seed.
The loss is elsewhere. On the top shelf stood 140 open glass jars of wild orchid seed in a dry atmosphere over silica gel. When the door frame thawed, moist air came in, and the seeds took up water. Of these, 96 have to be given up. For 31 of them duplicates exist in Uppmark and have been asked for. The other 65 will have to be collected again, which takes at least three summers.
The insurance covers the compressor and the cleaning. It does not cover the seeds, because a seed that cannot be bought has no price.
# What has been changed
- The automatic restart is switched on in all three controllers, and a card on each of them says so.
- Alarms go to a rota of four people. Whoever does not confirm within ten minutes is passed over and the next one is called.
- Each Monday at 09:00 a test alarm is sent; the one who is on duty signs for it.
- The list of alarm telephones is part of the form that is filled in when somebody leaves.
- The orchid jars have moved to store 1, into a steel cabinet with a door of its own.
One proposal was discussed and rejected. A diesel generator would have cost 41,000 and would not have helped, since the mains were away for four seconds only. The board decided to spend 6,500 on a second, independent thermometer in each store, with its own battery and its own telephone card.
Dr. Pell asks to add that the volunteer, Mrs. Yolanda Reyes, has been given a key and a cake.
"""

KOREAN = """
# 연구실 공동 장비 이용 안내
이 안내서는 한빛대학교 재료공학과 공동 실험실에서 장비를 처음 사용하는 학생과 연구원을 위해 만들었습니다. 모든 장비는 사용하기 전에 안전 교육을 받아야 하며, 교육은 매월 첫째 주 화요일 오후 두 시에 공학관 304호에서 열립니다. 교육을 받지 않은 사람은 동료와 함께 있더라도 장비를 만질 수 없습니다.
예약은 실험실 누리집에서 하루 전까지 합니다. 한 사람이 일주일에 예약할 수 있는 시간은 장비마다 여섯 시간입니다. 예약하고 나타나지 않는 일이 세 번 있으면 한 달 동안 예약할 수 없습니다. 야간 사용은 밤 열 시까지이며, 지도교수의 서면 허락이 필요합니다.
장비가 고장 나면 스스로 고치려고 하지 말고 전원을 끈 다음 담당자 윤서진 선생에게 전화합니다. 고장을 숨긴 사람은 수리비를 부담하지만, 바로 알린 사람은 부담하지 않습니다.
# 주사 전자 현미경
주사 전자 현미경은 시료의 표면을 수 나노미터 크기까지 보여 줍니다. 시료는 완전히 말라 있어야 하고, 전기가 통하지 않는 시료는 금이나 탄소로 얇게 덮어야 합니다. 코팅 장비는 같은 방의 창가에 있으며, 한 번 코팅하는 데 약 십 분이 걸립니다.
전자총의 필라멘트는 약 백 시간 동안 쓸 수 있습니다. 화면이 갑자기 어두워지면 필라멘트가 끊어진 것이므로 가속 전압을 내리고 담당자를 부릅니다. 자성을 띤 가루는 렌즈를 망가뜨리기 때문에 절대로 넣지 않습니다.
사용료는 한 시간에 이만 원이며, 학과 학생은 절반만 냅니다. 측정한 그림은 공용 저장 장치에 육십 일 동안 보관되고, 그 뒤에는 알림 없이 지워집니다.
# 전기로와 화재 예방
전기로는 최고 천육백 도까지 올라갑니다. 온도를 올리는 속도는 일 분에 십 도를 넘지 않아야 하며, 더 빨리 올리면 알루미나 관이 갈라집니다. 작업이 끝난 뒤에도 이백 도 아래로 식기 전에는 문을 열지 않습니다.
전기로 곁에는 종이, 아세톤, 알코올을 두지 않습니다. 불이 나면 먼저 붉은 비상 단추를 누르고, 이산화탄소 소화기를 사용합니다. 물은 감전 위험이 있어서 쓰지 않습니다. 실험실에서 나갈 때는 계단을 이용하고 운동장 동쪽 느티나무 아래에 모입니다.
작년 십일월에 뜨거운 도가니를 나무 책상에 올려놓아 작은 불이 난 적이 있습니다. 그 뒤로 도가니는 반드시 벽돌 판 위에 놓아야 하며, 내열 장갑과 얼굴 가리개를 모두 착용해야 합니다.
"""

JAPANESE = """
# 夜間貸出図書館のしくみ
白樺町立図書館は、平日の夜九時から翌朝六時まで、無人で本を貸し出しています。利用者は入口で図書館カードをかざし、棚から本を選んで、自動貸出機に置くだけで手続きが終わります。一度に借りられるのは五冊まで、期間は三週間です。
夜間の入館は十八歳以上の町民に限られます。館内には防犯カメラが十二台あり、映像は二週間だけ保存されます。困ったときは、受付の黄色い電話を取ると、消防署の当直につながります。
# 雪の日の返却と暖房
大雪の日は返却口が凍ることがあります。そのときは無理に開けず、本を家に置いたままにしてください。警報が出ている間の延滞は数えません。除雪は朝五時に始まり、駐車場より先に車椅子の通路を空けます。
暖房は木質ペレットのボイラーで、夜は室温を十六度に下げます。燃料は町内の製材所から届き、一冬におよそ四十トンを使います。灰は春に畑の肥料として希望者に配られます。
"""

MINUTES = """
# Minutes of the harbour committee, 6 February 2025
Present: Birgit Oyelaran (chair), Jonas Tveit, Captain Rosa Medeiros, Samir Haddad, Lin Qiu (minutes). Excused: Oskar Brandt. The meeting began at 18:05 in the net loft and ended at 20:40.
## 1 Dredging of the north basin
Captain Medeiros reported that the north basin has lost 80 centimetres of depth since 2019, and that the mail boat touched the ground at low water on 11 January. Two offers for dredging were opened. The cheaper one would dump the mud at sea, for which there is no permit. The committee chose the offer of Halvard Marine at 186,000, on condition that the work is finished before the herring season begins on 20 April.
## 2 Electric charging for ferries
Samir Haddad presented the plan for a charging station of 1.2 megawatts on pier 4. The grid company wants eighteen months for the new cable. Until then a battery of 900 kilowatt hours, filled slowly at night, could serve two departures a day. The committee liked the battery, and asked for a calculation of what it is worth when the cable has come.
- Samir Haddad: calculation of the resale value of the battery, by 6 March
- Jonas Tveit: talk to the ferry company about the timetable, by 20 February
- Birgit Oyelaran: apply to the climate fund, deadline 31 March
## 3 Fees for guest boats
The fees were last raised in 2021. After a long discussion about families with small boats, the following was agreed by four votes to one, valid from 1 May.
| Length of the boat | One night | One week | With electricity, a night |
| up to 7 metres | 14 | 70 | 5 more |
| 7 to 10 metres | 21 | 110 | 7 more |
| 10 to 14 metres | 33 | 175 | 9 more |
| over 14 metres | 52 | 290 | 15 more |
Jonas Tveit voted against and asked that his reason be recorded: the old wooden boats are long and narrow and their owners are not rich. The committee will look at a reduction for boats built before 1960 at its next meeting.
## 4 Any other business
Seals have learned to open the fish boxes on pier 2. Lin Qiu will ask the aquarium how theirs are locked. The next meeting is on 6 March at 18:00; cake is brought by Oskar Brandt, in his absence.
"""

CONTRACT = """
# Framework agreement for the supply of bread and milk
## 1 Parties and subject
Between the Association of Mountain Huts, Kirchgasse 4, Ober-Lanzen, called the association, and the suppliers listed in section 3, called the suppliers, the following is agreed. The suppliers deliver fresh and preserved food to the huts of the association between 15 June and 30 September of each year. The agreement begins on 1 May 2025 and ends on 30 April 2028.
## 2 Delivery, delay and bad weather
Goods are handed over at the valley station of the material ropeway before 06:30. The risk passes when the crate stands on the ropeway.{note} If the ropeway stands still because of wind, the supplier keeps the goods cool until noon, and the association pays for the ice. A delay of more than two hours without a message lowers the price of that delivery by fifteen percent; three such delays in one month entitle the association to cancel the contract with that supplier at the end of the following month.
Bread must be baked in the same night. Milk must not be warmer than six degrees at the hand-over; the hut warden measures, and the measurement of the warden is final.
## 3 Suppliers and prices
| No. | Supplier | Goods | Huts served | Price | Unit | Days |
| 1 | Bakery Imfeld | rye bread, 1 kg | Falkenhütte, Seehorn | 5.80 | loaf | Mon to Sat |
| 2 | Bakery Imfeld | plaited loaf, 500 g | Falkenhütte, Seehorn | 6.40 | loaf | Sat |
| 3 | Dairy Unterlanzen | whole milk | all huts | 1.55 | litre | daily |
| 4 | Dairy Unterlanzen | butter | all huts | 13.20 | kg | Tue, Fri |
| 5 | Alp Brunni | mountain cheese, 8 months | all huts | 22.50 | kg | Wed |
| 6 | Alp Brunni | goat cheese | Seehorn | 27.00 | kg | Wed |
| 7 | Farm Zgraggen | eggs from hens outdoors | Falkenhütte, Glattfirn | 0.62 | piece | Mon, Thu |
| 8 | Farm Zgraggen | potatoes | all huts | 1.90 | kg | Mon |
| 9 | Butcher Arnold | dried sausage | all huts | 38.00 | kg | Fri |
| 10 | Butcher Arnold | bacon | Glattfirn | 24.00 | kg | Fri |
| 11 | Mill Reussport | flour, type 550 | all huts | 1.30 | kg | first Mon of the month |
| 12 | Cellar Gisler | apple juice | all huts | 2.10 | litre | Tue |
| 13 | Cellar Gisler | red wine, house blend | Falkenhütte | 9.80 | bottle | Tue |
| 14 | Herb garden Lusser | tea of mountain herbs | Seehorn, Glattfirn | 46.00 | kg | on request |
Prices hold for one season. They may rise at the beginning of the next by no more than the national index of consumer prices for food.
## 4 Packaging and waste
Crates, milk cans and bottles belong to the suppliers and go back with the next ride of the ropeway. A lost milk can costs 85. Nothing that was delivered is thrown away on the mountain: bread that was not eaten goes down again as feed for the pigs of farm Zgraggen, free of charge.
## 5 Disputes
Whoever disagrees talks first, at a table, in the hut that is concerned. If that does not help, the mayor of Ober-Lanzen decides within fourteen days, and both sides accept in advance what he decides.
"""

HUT_NOTE = (
    "The ropeway has carried goods since 1954; it has never been licensed to carry persons, including hut wardens."
)


def make_inbox(folder: Path) -> list[Path]:
    """Write all documents and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    korean, japanese = "HYSMyeongJo-Medium", "HeiseiMin-W3"
    for font in (korean, japanese):
        pdfmetrics.registerFont(UnicodeCIDFont(font))
    documents = {
        "heron-operations-handbook.pdf": _pdf(HANDBOOK, "Heron: handbook for users and operators", "Heron committee"),
        "tarnvik-observatory-2024.pdf": _pdf(OBSERVATORY, "Tarnvik Observatory: annual report 2024", "Solveig Aune"),
        "seed-store-incident.pdf": _pdf(INCIDENT, "Incident report 2024-31", "Orrin Valley Seed Bank", outline=False),
        "lab-equipment-guide-ko.pdf": _pdf(KOREAN, "연구실 공동 장비 이용 안내", "한빛대학교", font=korean),
        "night-library-ja.pdf": _pdf(JAPANESE, "夜間貸出図書館のしくみ", "白樺町立図書館", font=japanese),
        "delivery-note-scan.pdf": _scan(),
        "harbour-committee-minutes.docx": _docx(MINUTES, "Lin Qiu"),
        "mountain-huts-supply-agreement.docx": _docx(
            CONTRACT, "Association of Mountain Huts", header="Agreement no. 2025-07", footer="Signed in Ober-Lanzen"
        ),
    }
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in documents]


def _pdf(source: str, title: str, author: str, *, font: str = "", outline: bool = True) -> bytes:
    target = io.BytesIO()
    document = BaseDocTemplate(target, pagesize=A4, title=title, author=author, invariant=1)
    frame = Frame(25 * mm, 22 * mm, A4[0] - 50 * mm, A4[1] - 44 * mm, id="body")
    document.addPageTemplates(PageTemplate(frames=[frame], onPageEnd=partial(_page_number, font=font)))
    if outline:
        document.afterFlowable = partial(_outline_entry, document)
    document.build(_flowables(source, font))
    return target.getvalue()


def _page_number(canvas: Any, document: Any, *, font: str) -> None:
    canvas.setFont(font or "Helvetica", 9)
    canvas.drawCentredString(A4[0] / 2, 12 * mm, str(document.page))


def _outline_entry(document: Any, flowable: Any) -> None:
    level = {"Chapter": 0, "Section": 1}.get(getattr(getattr(flowable, "style", None), "name", ""))
    if level is not None:
        title = flowable.getPlainText()
        document.canv.bookmarkPage(title)
        document.canv.addOutlineEntry(title, title, level=level)


def _flowables(source: str, font: str) -> list[Any]:
    wrap = "CJK" if font else None
    body = ParagraphStyle(
        "Body", fontName=font or "Times-Roman", fontSize=11, leading=15, spaceAfter=8, wordWrap=wrap, alignment=0
    )
    heading = font or "Helvetica-Bold"
    chapter = ParagraphStyle("Chapter", body, fontName=heading, fontSize=17, leading=22, spaceAfter=12)
    section = ParagraphStyle("Section", body, fontName=heading, fontSize=13, leading=17, spaceBefore=6)
    item = ParagraphStyle("Item", body, leftIndent=14, bulletIndent=2)
    flowables: list[Any] = []
    rows: list[list[Any]] = []
    for line in [*source.strip().splitlines(), ""]:
        if line.startswith("| "):
            rows.append([Paragraph(cell.strip(), body) for cell in line[2:].rstrip("|").split("|")])
            continue
        if rows:
            flowables += [_pdf_table(rows), Spacer(1, 10)]
            rows = []
        if line.startswith("# "):
            flowables += [PageBreak()] if flowables else []
            flowables.append(Paragraph(line[2:], chapter))
        elif line.startswith("## "):
            flowables.append(Paragraph(line[3:], section))
        elif line.startswith("- "):
            flowables.append(Paragraph(line[2:], item, bulletText="\u2022"))
        elif line:
            flowables.append(Paragraph(line, body))
    return flowables


def _pdf_table(rows: list[list[Any]]) -> Any:
    width = (A4[0] - 52 * mm) / len(rows[0])
    grid = [
        ("GRID", (0, 0), (-1, -1), 0.5, colors.grey),
        ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 0),
    ]
    return Table(rows, colWidths=[width] * len(rows[0]), style=TableStyle(grid))


def _scan() -> bytes:
    """Two pages of strokes and a stamp, as a scanner would leave them: nothing on them is text."""
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=A4, invariant=1)
    canvas.setTitle("Scan 0042")
    strokes = random.Random(42)  # noqa: S311 - a drawing, no secret
    for _ in range(2):
        canvas.setFillGray(0.96)
        canvas.rect(0, 0, *A4, stroke=0, fill=1)
        canvas.setStrokeGray(0.2)
        for line in range(24):
            x, y = 70.0, A4[1] - 90 - 26 * line
            while x < A4[0] - strokes.uniform(80, 220):
                width = strokes.uniform(5, 11)
                canvas.bezier(
                    x, y, x + width, y + strokes.uniform(4, 14), x, y + 9, x + width, y + strokes.uniform(0, 3)
                )
                x += width + strokes.choice((1, 1, 2, 9))
        canvas.setStrokeColorRGB(0.6, 0.1, 0.2)
        canvas.circle(430, 150, 46)
        canvas.circle(430, 150, 38)
        canvas.showPage()
    canvas.save()
    return target.getvalue()


def _docx(source: str, author: str, *, header: str = "", footer: str = "") -> bytes:
    document = docx.Document()
    document.styles["Normal"].font.size = Pt(11)
    rows: list[list[str]] = []
    for line in [*source.strip().splitlines(), ""]:
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line[2:].split("|")])
            continue
        if rows:
            _docx_table(document, [[cell for cell in row if cell] for row in rows])
            rows = []
        if line.startswith("# "):
            document.add_heading(line[2:], 0)
            document.core_properties.title = line[2:]
        elif line.startswith("## "):
            document.add_heading(line[3:], 1)
        elif line.startswith("- "):
            document.add_paragraph(line[2:], style="List Bullet")
        elif line:
            _docx_paragraph(document, line)
    section = document.sections[0]
    if header:
        section.header.paragraphs[0].text = header
        section.footer.paragraphs[0].text = footer
    properties = document.core_properties
    properties.author = properties.last_modified_by = author
    properties.comments = ""
    properties.created = properties.modified = WRITTEN
    target = io.BytesIO()
    document.save(target)
    return _without_times(target.getvalue())


def _docx_table(document: Any, rows: list[list[str]]) -> None:
    table = document.add_table(rows=len(rows), cols=len(rows[0]), style="Table Grid")
    for cells, row in zip(table.rows, rows, strict=True):
        for cell, text in zip(cells.cells, row, strict=True):
            cell.text = text
    document.add_paragraph()


def _docx_paragraph(document: Any, line: str) -> None:
    before, mark, after = line.partition("{note}")
    paragraph = document.add_paragraph(before)
    if mark:
        _add_footnote(document, paragraph, HUT_NOTE)
        paragraph.add_run(after)


def _add_footnote(document: Any, paragraph: Any, text: str) -> None:
    """python-docx writes no footnotes, so their part is made here."""
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    content = (
        f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><w:footnotes xmlns:w="{namespace}">'
        '<w:footnote w:type="separator" w:id="-1"><w:p><w:r><w:separator/></w:r></w:p></w:footnote>'
        '<w:footnote w:type="continuationSeparator" w:id="0"><w:p><w:r><w:continuationSeparator/></w:r></w:p>'
        f'</w:footnote><w:footnote w:id="1"><w:p><w:r><w:footnoteRef/></w:r><w:r><w:t xml:space="preserve"> {text}'
        "</w:t></w:r></w:p></w:footnote></w:footnotes>"
    )
    part = Part(
        PackURI("/word/footnotes.xml"),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml",
        content.encode(),
        document.part.package,
    )
    document.part.relate_to(part, "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes")
    reference = f'<w:r xmlns:w="{namespace}"><w:rPr><w:vertAlign w:val="superscript"/></w:rPr>'
    paragraph._p.append(parse_xml(reference + '<w:footnoteReference w:id="1"/></w:r>'))


def _without_times(archive: bytes) -> bytes:
    """The same archive with one fixed time on every member."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as fixed:
        for member in source.infolist():
            entry = zipfile.ZipInfo(member.filename, date_time=WRITTEN.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            fixed.writestr(entry, source.read(member))
    return target.getvalue()


if __name__ == "__main__":
    for path in make_inbox(Path(sys.argv[1]) if len(sys.argv) > 1 else INBOX):
        print(f"{path.name:40} {path.stat().st_size:>8,} bytes")
